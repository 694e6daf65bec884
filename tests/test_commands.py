"""Tests run commands in forks of one process: they behave as processes of their own."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from helpers.factories import ROOT
from helpers.slurm_cluster import wait_until

PRINTS = """
import os, sys
print(sys.argv, os.getcwd(), os.environ["NAME"], "torch" in sys.modules, sys.stdin.read())
print("to stderr", file=sys.stderr)
sys.exit(7)
"""


def started(commands, *words, **options):
    """Start Python in a fork."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([commands.python, *map(str, words)], **(pipes | options))


def test_a_fork_has_the_words_the_folder_the_variables_and_the_files_of_its_client(
    commands, tmp_path
):
    (tmp_path / "prints.py").write_text(PRINTS)
    environment = os.environ | {"NAME": "a value"}
    process = started(
        commands, "prints.py", "one", "-x", cwd=tmp_path, env=environment, stdin=subprocess.PIPE
    )
    printed, errors = process.communicate("given")
    assert printed == f"['prints.py', 'one', '-x'] {tmp_path} a value True given\n"
    assert errors == "to stderr\n"
    assert process.returncode == 7


@pytest.mark.parametrize(
    ("code", "exit_code", "errors"),
    [
        ("raise SystemExit('a message')", 1, "a message\n"),
        ("raise SystemExit", 0, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit, os; atexit.register(os.write, 2, b'at exit')", 0, "at exit"),
    ],
)
def test_a_client_ends_as_its_fork_does(code, exit_code, errors, commands):
    process = started(commands, "-c", code)
    assert process.communicate()[1] == errors
    assert process.returncode == exit_code


WAITS = """
import os, signal, time
signal.signal(signal.SIGUSR1, lambda *_: exit(75))
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_signals_reach_the_fork_and_a_client_that_is_killed_takes_it_along(commands):
    process = started(commands, "-c", WAITS)
    assert int(process.stdout.readline()) != process.pid
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 75
    process = started(commands, "-c", WAITS)
    fork = int(process.stdout.readline())
    process.kill()
    wait_until(lambda: not psutil.pid_exists(fork), seconds=20)


def test_a_launcher_starts_its_ranks_in_forks(commands, tmp_path):
    (tmp_path / "rank.py").write_text(
        "import os, sys\n"
        "in_fork = 'pipelines.flow' in sys.modules\n"
        'line = [os.environ["RANK"], os.environ["WORLD_SIZE"], str(in_fork)]\n'
        'os.write(1, (" ".join(line) + "\\n").encode())  # in one piece\n'
    )
    config = ROOT / "accelerate_configs" / "cpu_2_processes.yaml"
    words = ["-m", "accelerate.commands.launch", "--config_file", config, "rank.py"]
    for python in (commands.python, sys.executable):
        command = [str(python), *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        in_forks = python != sys.executable
        assert sorted(done.stdout.splitlines()) == [f"{rank} 2 {in_forks}" for rank in (0, 1)]
