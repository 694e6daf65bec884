"""Lock a run's folder, start a process as a data loader starts a worker, and print its id.

python locked_folder.py FOLDER
"""

import os
import sys
import time
from pathlib import Path

from pipelines.results.lock import lock_run_folder
from pipelines.search.locks import Lock

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    lock = Lock(folder / "trial")
    assert lock.try_acquire()
    with lock_run_folder(folder):
        if child := os.fork():
            print(child, flush=True)
        time.sleep(60)
