"""Ranks that meet, each in a process, and print how each meeting ends.

    python tests/helpers/meeting_ranks.py TIMEOUT MEETING ...

The environment has RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A rank calls its host node-RANK;
with OTHER_MACHINES=1 ranks do not see each other's processes.
"""

import json
import os
import signal
import socket
import sys
import time
from dataclasses import replace

from pipelines.log import quiet_torch_sockets

quiet_torch_sockets()  # as a command does, before it imports torch

from pipelines.errors import DataError, Problem, RecipeError, RunError  # noqa: E402
from pipelines.terminal import message_of, report_errors  # noqa: E402
from pipelines.training import ranks as module  # noqa: E402
from pipelines.training.ranks import Ranks, joined_ranks  # noqa: E402
from pipelines.training.shared_gpus import refuse_shared_gpus  # noqa: E402

RANK = int(os.environ["RANK"])


def agree(ranks: Ranks) -> object:
    """Exchange notes."""
    first = ranks.from_first(lambda: [RANK, "first"])
    return [ranks.exchange({"square": RANK**2}), first]


def other_notes(ranks: Ranks) -> None:
    """Compare notes of which rank 2 has others."""
    rows = {"train": "f" * 64 if RANK == 2 else "0" * 64}
    ranks.compare({"data": rows, "train": {"seed": RANK // 2}, "same": 1})


def error_of_one(ranks: Ranks) -> None:
    """Fail on rank 1, for which the others wait."""
    if RANK == 1:
        raise DataError("train.csv:7: no label.")
    ranks.wait()


def bug_of_one(ranks: Ranks) -> None:
    """Fail on rank 0 with an error that nobody foresaw."""
    if RANK == 0:
        raise ZeroDivisionError("division by zero")
    ranks.wait()


def error_of_all(ranks: Ranks) -> None:
    """Fail on every rank, one after the other."""
    time.sleep(0.3 * RANK)
    raise RecipeError([Problem("train.seed", "is odd.")])


def shared_gpu(ranks: Ranks) -> None:
    """See a GPU of its own on rank 0, and one for two on the others."""
    refuse_shared_gpus(ranks, "GPU-0" if RANK == 0 else "GPU-1")


def own_gpus(ranks: Ranks) -> str:
    """See a GPU on rank 0, and none on the others."""
    refuse_shared_gpus(ranks, "GPU-0" if RANK == 0 else None)
    return "allowed"


def busy(ranks: Ranks) -> str:
    """Let rank 0 compute for longer than the time-out."""
    if RANK == 0:
        until = time.monotonic() + 6
        while time.monotonic() < until:
            pass
    ranks.wait()
    return "waited"


def blocked(ranks: Ranks) -> None:
    """Fail on rank 1, while the others are in a call that does not return."""
    if RANK == 1:
        raise DataError("train.csv:7: no label.")
    time.sleep(100)


def killed(ranks: Ranks) -> None:
    """Kill rank 1; rank 0 waits for it, rank 2 is in a call that does not return."""
    ranks.wait()
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if RANK == 0:
        ranks.wait()
    time.sleep(100)


def stopped(ranks: Ranks) -> None:
    """Freeze rank 1."""
    ranks.wait()
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.wait()


def meet(name: str, timeout: float) -> None:
    """Hold a meeting and print how it ends for this rank; the last one ends the process."""
    start = time.monotonic()
    try:
        with joined_ranks(timeout) as ranks:
            ended: object = globals()[name](ranks)
    except RunError as error:
        lines = getattr(error, "lines", None) or message_of(error)
        ended = [error.exit_code, lines]
    except ZeroDivisionError as error:
        ended = str(error)
    print(json.dumps([name, ended, round(time.monotonic() - start, 1)]), flush=True)


if __name__ == "__main__":
    socket.gethostname = lambda: f"node-{RANK}"
    if os.environ.get("OTHER_MACHINES"):
        state_of = module.own_state
        module.own_state = lambda *a: replace(state_of(*a), machine=f"machine {RANK}")
    seconds, *meetings, last = sys.argv[1:]
    for meeting in meetings:
        meet(meeting, float(seconds))
    with report_errors(), joined_ranks(float(seconds)) as joined:
        globals()[last](joined)
