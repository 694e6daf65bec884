"""Run commands as a shell would, each in a fork of a process that has imported the libraries.

A new process for each would spend six seconds on imports. A client connects to the Unix socket
whose path is this program's argument, and sends a byte with its files 0, 1 and 2, then a line of
JSON with `words`, `cwd` and `environment`. It gets a line with the fork's process id, and one with
its exit code. The fork of a client that is gone is killed. Libraries that read the environment when
they are imported have read that of this process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from select import select
from typing import Any

LIBRARIES = (
    "bitsandbytes",
    "evaluate",
    "peft",
    "trl",
    "matplotlib.pyplot",
    "optuna",
    "scipy.stats",
    "transformers.models.gpt2.modeling_gpt2",
    "pipelines.doctor.command",
    "pipelines.evaluation.compare",
    "pipelines.evaluation.evaluate",
    "pipelines.flow",
    "pipelines.inference.evaluate_pipeline",
    "pipelines.inference.generate",
    "pipelines.inference.merge",
    "pipelines.inference.predict",
    "pipelines.repeat",
    "pipelines.search.command",
    "pipelines.search.study",
    "pipelines.training.trl",
)


def serve(address: str) -> None:
    """Fork for each client, until stdin has a line or ends."""
    for name in LIBRARIES:
        __import__(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select([listener, sys.stdin], [], [])[0]:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                attend(client)
                os._exit(0)
            client.close()
            reap()
    reap()


def reap() -> None:
    """Collect the forks that have ended, and the time that they took."""
    with contextlib.suppress(ChildProcessError):  # there is none
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def attend(client: socket.socket) -> None:
    """Run the job of a client in another fork, and tell its exit code."""
    _, files, _, _ = socket.recv_fds(client, 1, 3)
    job = json.loads(client.makefile().readline())
    child = os.fork()
    if child == 0:
        client.close()
        end(job, files)
    for file in files:
        os.close(file)
    client.sendall(f"{child}\n".encode())
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if select([client], [], [], 0.01)[0]:
            os.kill(child, signal.SIGKILL)
            return
    client.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())


def end(job: dict[str, Any], files: list[int]) -> None:
    """Do a job in this process, and end it."""
    take(files)
    os.chdir(job["cwd"])
    launched_by = os.environ["PYTHON_EXEC"]
    os.environ.clear()
    os.environ.update(job["environment"], PYTHON_EXEC=launched_by)
    code = 0
    try:
        run(job["words"])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        if isinstance(exit_.code, str):
            print(exit_.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def take(files: list[int]) -> None:
    """Make stdin, stdout and stderr of three files, as Python does when it starts."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)


def run(words: list[str]) -> None:
    """Run the words of a command."""
    program, *others = words
    if program == "gpt2-recipes":
        from pipelines.cli.main import console

        search_first(Path.cwd())
        sys.argv = words
        console()
    elif program == "python":
        run_python(others)
    elif words[:2] == ["accelerate", "launch"]:
        accelerate_launch(others[1:])
    else:
        raise SystemExit(subprocess.run(words).returncode)


def search_first(folder: Path) -> None:
    """Look for modules in a folder and in PYTHONPATH first."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [str(folder), *filter(None, given)]


def run_python(words: list[str]) -> None:
    """Run a file, a module or code with its arguments, as `python` does."""
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        words = words[1:]
    if words[0] not in ("-m", "-c"):
        sys.argv = words
        search_first(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
        return
    option, given, *others = words
    sys.argv = [option, *others]
    search_first(Path.cwd())
    if option == "-m":
        sys.modules.pop(given, None)
        runpy.run_module(given, run_name="__main__", alter_sys=True)
    else:
        exec(compile(given, "<string>", "exec"), {"__name__": "__main__"})


def accelerate_launch(words: list[str]) -> None:
    """Run a script of one process with the environment that Accelerate's launcher makes for it.

    Of what this machine cannot run, do what its processes do first, which is to refuse it.
    """
    from accelerate.utils import prepare_simple_launcher_cmd_env

    from pipelines.terminal import report_errors
    from pipelines.training.launch_upstream import arguments_with_config
    from pipelines.training.launcher import check_request, read_request

    with report_errors():
        check_request(read_request(words))
    arguments = arguments_with_config(words)
    if arguments.multi_gpu:
        run_python(["-m", "accelerate.commands.launch", *words])
        return
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    os.environ.update(environment)
    run_python(command[1:])


if __name__ == "__main__":
    del sys.path[0]  # the helpers' folder
    serve(sys.argv[1])
