"""End a process while the workers of its data loader still run; print its exit code.

python tests/helpers/workers_left_behind.py {fork,spawn,forkserver}
"""

import multiprocessing
import sys

from torch.utils.data import DataLoader

from pipelines.workers import worker_context


def fail() -> None:
    """Start workers and exit with 3."""
    global iterator  # as the trace of an error keeps it
    multiprocessing.set_start_method(sys.argv[1], force=True)
    loader = DataLoader(range(99), num_workers=2, multiprocessing_context=worker_context())
    iterator = iter(loader)
    next(iterator)
    raise SystemExit(3)


if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=fail)
    process.start()
    process.join()
    print("ended with", process.exitcode)
