"""A command at a pseudo-terminal, to which a test types."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import contextmanager

from helpers.factories import ROOT

ESCAPE = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")


class Typist:
    """Types to a process, and reads what its terminal shows."""

    def __init__(self, process, controller):
        self.process, self.controller = process, controller
        self.shown = ""

    def type(self, text: str) -> None:
        """Press keys; "\\r" is enter."""
        os.write(self.controller, text.encode())

    def wait_for(self, text: str, *, seconds: float = 120) -> str:
        """Return what is shown up to a text, which is not shown again to the next call."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            if not self.read(end - time.monotonic()):
                raise AssertionError(f"no {text!r} after {self.shown[-2000:]!r}")
        before, _, self.shown = self.shown.partition(text)
        return before

    def interrupt(self, text: str) -> str:
        """Press Ctrl-C, and return what is shown up to a text, as `wait_for` does.

        Python misses a Ctrl-C that comes just before it waits for a key, until the next one: where
        the text is not shown within 15 seconds, the key is pressed again.
        """
        for _ in range(4):
            self.type("\x03")
            end = time.monotonic() + 15
            while text not in self.shown and self.read(end - time.monotonic()):
                pass
            if text in self.shown:
                break
        return self.wait_for(text)

    def read(self, seconds: float) -> bool:
        """Read once. Return False after some seconds, and at the end of the process."""
        ready, _, _ = select.select([self.controller], [], [], max(0, seconds))
        try:
            chunk = os.read(self.controller, 65536) if ready else b""
        except OSError:  # Linux, once the process has ended
            return False
        self.shown += ESCAPE.sub("", chunk.decode(errors="replace"))
        return bool(chunk)

    def end(self) -> int:
        """Return the exit code, once nothing more is shown."""
        while self.read(60):
            pass
        return self.process.wait(timeout=60)


@contextmanager
def at_terminal(*words, columns: int = 80, **variables: str):
    """Yield a typist of `gpt2-recipes` and its words."""
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns)} | variables
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines", *map(str, words)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        preexec_fn=take_terminal,
    ) as process:
        os.close(terminal)
        try:
            yield Typist(process, controller)
        finally:
            process.kill()
            os.close(controller)


def take_terminal() -> None:
    """Make standard input the terminal of the session, so that Ctrl-C is a signal.

    A shell that runs the tests in the background lets its processes ignore that signal.
    """
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
