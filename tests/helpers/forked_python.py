"""Run Python in a fork of the command server, as if this process ran it.

tests/helpers/commands.py writes an executable that calls `main`. It takes the words that `python`
takes. The fork has this process's folder, environment and files; signals are passed on to it, and
this process ends as it does.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from select import select

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def request(server, words, *, cwd, environment, files):
    """Ask the server to run words; return the process id of their fork."""
    socket.send_fds(server, [b"\n"], files)
    job = {"words": words, "cwd": cwd, "environment": environment}
    server.sendall(json.dumps(job).encode() + b"\n")
    return number_from(server)


def number_from(server):
    """Read a line of the server, and no more: a process id, or the exit code."""
    with server.makefile("rb", buffering=0) as answers:
        return int(answers.readline())


def main(address):
    """Run the words of this process, and end as they do."""
    signals = catch_signals()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        pid = request(
            server,
            ["python", *sys.argv[1:]],
            cwd=str(Path.cwd()),
            environment=dict(os.environ),
            files=[0, 1, 2],
        )
        while server not in select([server, signals], [], [])[0]:
            pass_on(signals, pid)
        code = number_from(server)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def catch_signals():
    """Return a file from which the numbers of this process's signals can be read."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in PASSED_ON:
        signal.signal(number, lambda *_: None)
    return reader


def pass_on(signals, pid):
    """Send the signals of this process to the fork, unless it has ended."""
    for number in os.read(signals, len(PASSED_ON)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
