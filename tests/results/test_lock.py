"""Locks of folders end with their process, though its children live on."""

import os
import signal
import subprocess
import sys

from helpers.factories import ROOT
from pipelines.results.lock import lock_run_folder
from pipelines.search.locks import Lock


def test_the_workers_of_a_killed_run_do_not_hold_its_locks(tmp_path):
    script = ROOT / "tests" / "helpers" / "locked_folder.py"
    words = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        worker = int(process.stdout.readline())
        lock = Lock(tmp_path / "trial")
        try:
            assert not lock.try_acquire()
            process.kill()
            process.wait()
            os.kill(worker, 0)  # it lives
            assert lock.try_acquire()
            with lock_run_folder(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)
