"""Commands as a user types them, each in a process that need not import the libraries."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from helpers.factories import ROOT


class CommandServer:
    """The process that runs commands in forks, tests/helpers/command_server.py.

    Libraries read `environment` when they are imported: it is the same for all commands.
    """

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.output = folder / "output"
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "helpers" / "command_server.py"],
            env=environment,
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

    def run(self, cwd: Path, **job) -> tuple[int, str]:
        """Run `words` or `code` in a folder; return the exit code and what it printed."""
        job |= {"cwd": str(cwd), "output": str(self.output)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, self.output.read_text(encoding="utf-8", errors="replace")

    def succeed(self, cwd: Path, command: str) -> None:
        """Run a command that must succeed."""
        code, printed = self.run(cwd, words=shlex.split(command))
        assert code == 0, f"{command}\n{printed[-3000:]}"

    def printed(self, *words, cwd: Path, code: int = 0) -> str:
        """Return what a command prints that ends with an exit code, and shows no trace."""
        found, printed = self.run(cwd, words=[*map(str, words)])
        assert found == code, printed[-3000:]
        assert "Traceback" not in printed
        return printed
