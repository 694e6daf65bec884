"""Contract with private names of tyro."""

import os
import pty
import subprocess
import sys

import pytest

from helpers.factories import ROOT


@pytest.mark.parametrize(("variable", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_turns_the_colours_of_help_off(variable, coloured):
    """The help is printed to a terminal, since tyro has no colours elsewhere."""
    controller, terminal = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    command = [sys.executable, "-m", "pipelines", "hub", "--help"]
    with subprocess.Popen(
        command,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        env=environment | {"TERM": "xterm"} | variable,
    ) as process:
        os.close(terminal)
        said = b""
        while chunk := read(controller):
            said += chunk
    os.close(controller)
    assert process.returncode == 0
    assert b"--port" in said
    assert (b"\x1b[" in said) == coloured


def read(controller):
    """Return what a terminal shows next, b"" at the end."""
    try:
        return os.read(controller, 4096)
    except OSError:  # Linux, once the process has ended
        return b""
