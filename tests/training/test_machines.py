"""What several machines need to find each other."""

import pytest

from pipelines.errors import RecipeError
from pipelines.training.machines import check_machines

TWO = {
    "distributed_type": "MULTI_GPU",
    "num_machines": 2,
    "machine_rank": 1,
    "main_process_ip": "10.0.0.1",
    "num_processes": 16,
}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"num_machines": 1, "machine_rank": 0, "main_process_port": 0},
        {"distributed_type": False, "num_machines": 1},
        TWO,
        TWO | {"main_process_port": 65535},
        TWO | {"num_processes": -1},  # as Accelerate's own configs leave it open
        TWO | {"distributed_type": "FSDP", "num_processes": None},
    ],
)
def test_machines_that_find_each_other_may_start(values):
    check_machines(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_machines": 0}, "num_machines: 0 is out of range; it must be at least 1"),
        ({"num_machines": "two"}, "num_machines: 'two' is not a whole number"),
        ({"main_process_port": 65536}, "main_process_port: 65536 is out of range; .* to 65535"),
        ({"machine_rank": 1}, "machine_rank: 1 is .* with --num-machines 1 it must be 0"),
        ({"machine_rank": -1}, "machine_rank: -1 is out of range; it must be at least 0"),
        (TWO | {"machine_rank": 2}, "machine_rank: 2 is .* it must be from 0 to 1"),
        (TWO | {"machine_rank": None}, "machine_rank: missing. Each of 2 machines needs its own"),
        (TWO | {"main_process_ip": None}, "main_process_ip: missing. 2 machines need the address"),
        (TWO | {"main_process_port": 0}, "main_process_port: 0 takes another free port on each"),
        (TWO | {"num_processes": 3}, "num_processes: 3 processes cannot .* Use 2 or 4"),
        (TWO | {"num_processes": 1}, "num_processes: 1 process cannot .* Use 2"),
        (TWO | {"distributed_type": "NO"}, "num_machines: 2 machines need a config"),
        (TWO | {"distributed_type": False}, "num_machines: 2 machines need a config"),
    ],
)
def test_machines_that_would_wait_for_each_other_in_vain_are_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        check_machines(values)


def test_all_that_is_missing_is_told_at_once():
    with pytest.raises(RecipeError) as caught:
        check_machines({"num_machines": 3, "num_processes": 4})
    paths = [problem.path for problem in caught.value.problems]
    assert paths == ["num_machines", "machine_rank", "main_process_ip", "num_processes"]
