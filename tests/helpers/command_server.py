"""Run commands as a shell would, each in a fork of a process that has imported the libraries.

A new process for each would spend six seconds on imports. Each line of stdin is a JSON object with
`words` or `code` (of Python), `cwd` and `output`, a file; each line of stdout is an exit code. An
empty line ends this process. The environment, that of Hugging Face too, is the one of this process.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
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

LONGEST = 120
"""Seconds of a command, after which it is ended: it waits for what never comes."""


def serve() -> None:
    """Fork for each line, and answer with the exit code."""
    for name in LIBRARIES:
        __import__(name)
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, "\n"):
        if not line:
            return
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            end(job)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def end(job: dict[str, Any]) -> None:
    """Do a job in this process, and end it."""
    file = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["cwd"])
    signal.alarm(LONGEST)
    sys.path.insert(0, str(Path.cwd()))
    code = 0
    try:
        if "code" in job:
            exec(compile(job["code"], "<document>", "exec"), {"__name__": "__main__"})
        else:
            run(job["words"])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(words: list[str]) -> None:
    """Run the words of a command."""
    program, *others = words
    if program == "gpt2-recipes":
        from pipelines.cli.main import console

        sys.argv = words
        console()
    elif program == "python":
        run_file(others)
    elif words[:2] == ["accelerate", "launch"]:
        accelerate_launch(others[1:])
    else:
        raise SystemExit(subprocess.run(words).returncode)


def run_file(words: list[str]) -> None:
    """Run a Python file with its arguments, as `python` does."""
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")


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
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *words]
        raise SystemExit(subprocess.run(launcher).returncode)
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    os.environ.update(environment)
    run_file(command[1:])


if __name__ == "__main__":
    serve()
