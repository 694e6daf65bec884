"""The peak of this process's memory, since it was last asked for."""

from __future__ import annotations

import gc
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from pipelines.process import returning_freed_memory

PROCESS = Path("/proc/self")


def reset_peak() -> None:
    """Let the next `peak_memory` tell of what comes now.

    Where the kernel cannot do that, it tells of all that the process has done, which is no less.
    """
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")  # see proc_pid_clear_refs(5)


def peak_memory() -> int:
    """Return the most resident bytes."""
    try:
        status = (PROCESS / "status").read_text()
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def memory_at_rest() -> int:
    """Return the resident bytes when the OS has all that was freed."""
    with returning_freed_memory():
        gc.collect()
    return resident_memory()


def resident_memory() -> int:
    """Return the resident bytes now."""
    return int(psutil.Process().memory_info().rss)
