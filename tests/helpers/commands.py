"""Commands as a user types them, each in a process that need not import the libraries."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from helpers.factories import ROOT
from helpers.forked_python import number_from, request

FORKED_PYTHON = """#!{python} -IS
import sys
sys.path.insert(0, {tests!r})
from helpers.forked_python import main
main({address!r})
"""
LONGEST = 120
"""Seconds of a command, after which it is ended: it waits for what never comes."""


class CommandServer:
    """The process that runs commands in forks, tests/helpers/command_server.py.

    `python` runs what `sys.executable` runs, in a fork; so do launchers in a fork with their ranks.
    Libraries read `environment` when they are imported: what they read then is that of all forks.
    """

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.output, self.address = folder / "output", str(folder / "socket")
        self.python = folder / "python"
        text = FORKED_PYTHON.format(
            python=sys.executable, tests=str(ROOT / "tests"), address=self.address
        )
        self.python.write_text(text)
        self.python.chmod(0o755)
        self.environment = environment | {"PYTHON_EXEC": str(self.python)}  # torchrun's own
        script = ROOT / "tests" / "helpers" / "command_server.py"
        self.process = subprocess.Popen(
            [sys.executable, script, self.address],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.write("\n")  # a process that a test has forked may hold the pipe open
        self.process.stdin.flush()
        assert self.process.wait(timeout=60) == 0

    def run(self, cwd: Path, *words: str) -> tuple[int, str]:
        """Run a command's words in a folder; return the exit code and what it printed."""
        with (
            socket.socket(socket.AF_UNIX) as server,
            Path(os.devnull).open() as nothing,
            self.output.open("w") as output,
        ):
            server.settimeout(LONGEST)
            server.connect(self.address)
            files = [each.fileno() for each in (nothing, output, output)]
            request(server, words, cwd=str(cwd), environment=self.environment, files=files)
            try:
                code = number_from(server)
            except TimeoutError as error:
                error.add_note(self.output.read_text(errors="replace")[-3000:])
                raise
        return code, self.output.read_text(encoding="utf-8", errors="replace")

    def succeed(self, cwd: Path, command: str) -> None:
        """Run a command that must succeed."""
        code, printed = self.run(cwd, *shlex.split(command))
        assert code == 0, f"{command}\n{printed[-3000:]}"

    def printed(self, *words, cwd: Path, code: int = 0) -> str:
        """Return what a command prints that ends with an exit code, and shows no trace."""
        found, printed = self.run(cwd, *map(str, words))
        assert found == code, printed[-3000:]
        assert "Traceback" not in printed
        return printed
