"""Send every signal that stops a run to the workers of a loader; print the batches they bring.

python tests/helpers/signals_to_workers.py {fork,spawn,forkserver}
"""

import multiprocessing
import os
import signal
import sys
from multiprocessing import resource_tracker

import psutil
from torch.utils.data import DataLoader

from pipelines.workers import STOP_SIGNALS, worker_context

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    resource_tracker.ensure_running()  # Python's, which a SIGHUP ends and Python restarts
    spared = psutil.Process().children()
    loader = DataLoader(range(8), num_workers=1, multiprocessing_context=worker_context())
    batches = iter(loader)
    if signal.pthread_sigmask(signal.SIG_BLOCK, ()) != mask:
        raise SystemExit("the signals of this process are blocked too")
    brought = [int(next(batches))]
    for number in STOP_SIGNALS:
        for child in psutil.Process().children(recursive=True):
            if child not in spared:
                os.kill(child.pid, number)
    print(brought + [int(batch) for batch in batches])
