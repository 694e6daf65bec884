"""What worker processes make arrives in order, as do their errors, and no worker is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from helpers.factories import ROOT
from pipelines import parallel
from pipelines.errors import DataError, Problem, RecipeError, WorkerError
from pipelines.parallel import map_in_order, num_workers

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


@pytest.fixture(autouse=True)
def two_workers(monkeypatch):
    """Two workers, however many cores there are."""
    monkeypatch.setattr(parallel, "num_cores", lambda: 2)


@pytest.fixture
def workers():
    """Return a function that gives the processes that this one has started since."""
    others = psutil.Process().children()
    return lambda: [each for each in psutil.Process().children() if each not in others]


def slow_for_even(number):
    time.sleep(0.05 * (number % 2 == 0))
    return number, os.getpid()


@needs_fork
def test_results_come_in_the_order_of_the_items_from_two_processes():
    results = [*map_in_order(slow_for_even, range(9))]
    assert [number for number, _ in results] == [*range(9)]
    pids = {pid for _, pid in results}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_single_item_is_made_in_this_process():
    assert [*map_in_order(slow_for_even, [4])] == [(4, os.getpid())]
    assert [*map_in_order(slow_for_even, [])] == []


def test_one_core_makes_everything_in_this_process(monkeypatch):
    monkeypatch.setattr(parallel, "num_cores", lambda: 1)
    assert {pid for _, pid in map_in_order(slow_for_even, range(4))} == {os.getpid()}


def test_a_function_needs_no_pickling():
    factor = 3
    assert [*map_in_order(lambda number: factor * number, range(5))] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("cores", [1, 2])
def test_the_first_error_in_the_order_of_the_items_is_raised(cores, monkeypatch):
    monkeypatch.setattr(parallel, "num_cores", lambda: cores)

    def make(number):
        if number == 3:
            time.sleep(0.2)  # the later error is there before
        if number in (3, 4):
            raise DataError(f"rows.jsonl:{number}: not a text.")
        return number

    seen = []
    with pytest.raises(DataError, match=r"^rows.jsonl:3: not a text.$") as caught:
        seen.extend(map_in_order(make, range(9)))
    assert caught.value.exit_code == 3


def test_an_error_with_several_problems_arrives_whole():
    problems = [Problem("task.x", "holds 1"), Problem("task.y", "holds 2")]

    def make(number):
        raise RecipeError(problems)

    with pytest.raises(RecipeError) as caught:
        [*map_in_order(make, range(3))]
    assert caught.value.problems == problems


@needs_fork
def test_a_killed_worker_ends_the_map(workers):
    def make(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(WorkerError, match=r"A process that prepares rows was killed.*") as caught:
        [*map_in_order(make, range(9))]
    assert caught.value.exit_code == 75
    assert workers() == []


@needs_fork
@pytest.mark.parametrize("position", [0, 1])
def test_a_worker_that_is_killed_from_outside_ends_the_map(position, workers):
    """The other one may wait for what the killed one held, and is not left to wait."""
    text = "x" * 2**21  # more than a pipe holds

    def items():
        yield from [text] * 4
        workers()[position].kill()
        yield from [text] * 9

    with pytest.raises(WorkerError):
        [*map_in_order(lambda each: time.sleep(0.2), items())]
    assert workers() == []


@needs_fork
def test_a_map_that_is_not_read_to_the_end_leaves_no_process(workers):
    results = map_in_order(slow_for_even, range(99))
    next(results)
    results.close()
    assert workers() == []


@needs_fork
def test_workers_end_with_a_parent_that_is_killed():
    code = (
        "import os, time\n"
        "from pipelines import parallel\n"
        "parallel.num_cores = lambda: 2\n"
        "def make(number):\n"
        "    return os.getpid() if number < 2 else time.sleep(60)\n"
        "results = parallel.map_in_order(make, range(9))\n"
        "print(next(results), flush=True)\n"
        "next(results), next(results)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    gone, alive = psutil.wait_procs([worker], timeout=10)
    assert alive == []


def test_a_daemon_makes_everything_itself():
    """It may have no children."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(num_workers) == 1
