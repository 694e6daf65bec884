"""Ranks that differ, fail or are lost: all end, with one message that names rank and host."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore

from helpers.factories import ROOT
from pipelines.training.ranks import Ranks, named, shown
from pipelines.training.shared_gpus import own_gpu

MEETING = ROOT / "tests" / "helpers" / "meeting_ranks.py"
AGAIN = "Run the same command again to resume from the last checkpoint."


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meet_with_launcher(*meetings, **options):
    """Let ranks meet in a store that outlives them, as that of torch's launcher does."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return meet(*meetings, port=store.port, TORCHELASTIC_USE_AGENT_STORE="True", **options)


def meet(*meetings, ranks=(0, 1, 2), timeout=20, sizes=(3, 3, 3), port=None, limit=60, **variables):
    """Let ranks meet in the store of rank 0; return exit code, JSON values and messages of each."""
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", **variables}
    environment |= {"MASTER_PORT": str(port or free_port()), "PYTHONPATH": str(ROOT)}
    environment["LOCAL_RANK"] = "0"  # each prints, as the first rank of a machine does
    processes = [
        subprocess.Popen(
            [sys.executable, str(MEETING), str(timeout), *meetings],
            env=environment | {"RANK": str(rank), "WORLD_SIZE": str(sizes[rank])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    ends = []
    for process in processes:
        if "stopped" not in meetings or process is not processes[1]:
            out, errors = process.communicate(timeout=limit)
            values = [json.loads(line) for line in out.splitlines()]
            ends.append((process.returncode, values, errors.splitlines()))
    if "stopped" in meetings:
        processes[1].kill()
        processes[1].communicate()
    return ends


def test_ranks_end_meetings_together_and_can_meet_again():
    """One process holds several, as `repeat` runs several recipes; the last ends it."""
    names = [
        "agree",
        "other_notes",
        "error_of_one",
        "bug_of_one",
        "error_of_all",
        "shared_gpu",
        "own_gpus",
        "busy",
        "blocked",
    ]
    ends = meet_with_launcher(*names, timeout=8)
    heard = {name: [values[i][1] for _, values, _ in ends] for i, name in enumerate(names[:-1])}
    squares = [{"square": 0}, {"square": 1}, {"square": 4}]
    assert heard["agree"] == [[squares, [0, "first"]]] * 3
    files = "data.train: rank 2 on node-2 has ffffffffffff…, rank 0 on node-0 has 000000000000…. "
    seed = "train.seed: rank 2 on node-2 has 1, rank 0 on node-0 has 0. "
    lines = [f"{files}Give every machine the same files."]
    lines.append(f"{seed}Start the same command with the same recipe on every machine.")
    assert heard["other_notes"] == [[2, lines]] * 3
    assert heard["error_of_one"] == [[3, ["rank 1 on node-1: train.csv:7: no label."]]] * 3
    bug = [1, ["rank 0 on node-0: ZeroDivisionError: division by zero"]]
    assert heard["bug_of_one"] == ["division by zero", bug, bug]
    assert heard["error_of_all"] == [[2, ["--train.seed: is odd."]]] * 3  # and not three times
    shared = "ranks 1, 2 would share the GPU GPU-1. Start one process a GPU: lower "
    shared += "--num_processes, or show each rank a GPU of its own by CUDA_VISIBLE_DEVICES."
    assert heard["shared_gpu"] == [[2, [f"accelerate launch: {shared}"]]] * 3
    assert heard["own_gpus"] == ["allowed"] * 3
    assert heard["busy"] == ["waited"] * 3  # 6 s, where a rank is lost after 4.8 s of silence
    for code, values, errors in ends:
        assert code == 3
        assert errors == ["rank 1 on node-1: train.csv:7: no label."]
        assert all(seconds < 20 for *_, seconds in values)


def test_a_rank_whose_process_has_ended_is_lost_at_once():
    start = time.monotonic()
    first, second, third = meet("killed", timeout=600)
    assert time.monotonic() - start < 40
    assert second[0] == -signal.SIGKILL
    for code, _, errors in (first, third):
        assert code == 75
        assert errors == ["lost rank 1 on node-1: its process has ended.", AGAIN]


def test_a_rank_that_gives_no_sign_of_life_is_lost_within_the_time_out():
    for code, _, errors in meet("stopped", timeout=12, OTHER_MACHINES="1"):
        assert code == 75
        assert errors[0].startswith("lost rank 1 on node-1: no sign of life for ")
        assert errors[1:] == [AGAIN]


@pytest.mark.parametrize(
    ("ranks", "sizes", "code", "message"),
    [
        ((0, 2), (3, 3, 3), 75, "rank 1 of 3 did not start within 8 s (--train.ddp-timeout). "),
        ((1,), (2, 2, 2), 75, "rank 0 of 2 did not start within 8 s (--train.ddp-timeout). "),
        ((0, 1), (2, 3, 3), 2, "world_size: rank "),
    ],
)
def test_ranks_that_do_not_come_are_not_waited_for_beyond_the_time_out(ranks, sizes, code, message):
    for exit_code, _, errors in meet("agree", ranks=ranks, sizes=sizes, timeout=8):
        assert exit_code == code
        assert errors[0].startswith(message), errors


def test_a_port_in_use_is_told_by_rank_0():
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        [(code, _, errors)] = meet("agree", ranks=(0,), sizes=(2,), port=port)
    assert code == 2
    assert errors[0].startswith(f"port {port} of 127.0.0.1 cannot be opened on node-0: ")


@pytest.mark.parametrize(
    ("visible", "local_rank", "gpu"), [(2, "0", "GPU-0"), (2, "1", "GPU-1"), (1, "1", "GPU-0")]
)
def test_a_rank_knows_the_gpu_that_accelerate_gives_it(visible, local_rank, gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    properties = "torch.cuda.get_device_properties"
    monkeypatch.setattr(properties, lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert own_gpu() == gpu
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert own_gpu() is None


def test_a_single_process_agrees_with_itself():
    alone = Ranks(None, 600)
    with alone.ending_together():
        alone.compare({"data": {"train": "x"}})
        assert alone.from_first(lambda: 3) == 3
        assert alone.exchange({"a": 1}) == [{"a": 1}]
    alone.close()


def test_ranks_and_hashes_as_text():
    assert named([1]) == "rank 1"
    assert named([3, 1, 2]) == "ranks 1, 2 and 3"
    assert shown("ab" * 32) == "abababababab…"
    assert shown("a/path") == "'a/path'"
    assert shown(None) == "nothing"
