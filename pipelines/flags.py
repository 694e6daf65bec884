"""Parse the words of a command, and suggest the flag that an unknown one was meant to be."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import tyro

from pipelines.errors import Problem, RecipeError
from pipelines.flags_upstream import honour_no_color

SYNONYMS = {
    "adapter-rank": "r",
    "alpha": "lora-alpha",
    "base": "name-or-path",
    "base-model": "name-or-path",
    "batch": "global-batch-size",
    "batch-size": "global-batch-size",
    "checkpoint-steps": "save-steps",
    "clip": "max-grad-norm",
    "context-length": "block-size",
    "data": "path",
    "data-path": "path",
    "dataset": "path",
    "device-batch-size": "per-device-train-batch-size",
    "dropout": "lora-dropout",
    "early-stopping": "early-stopping-patience",
    "epochs": "num-train-epochs",
    "eval-batch-size": "per-device-eval-batch-size",
    "eval-every": "eval-steps",
    "grad-clip": "max-grad-norm",
    "gradient-accumulation-steps": "global-batch-size",
    "hub-model-id": "push-to",
    "label": "label-column",
    "lr": "learning-rate",
    "max-len": "max-length",
    "max-seq-length": "max-length",
    "micro-batch-size": "per-device-train-batch-size",
    "model": "name-or-path",
    "num-epochs": "num-train-epochs",
    "num-workers": "dataloader-num-workers",
    "optimizer": "optim",
    "output": "output-dir",
    "patience": "early-stopping-patience",
    "rank": "r",
    "repo-id": "push-to",
    "run-name": "name",
    "scheduler": "lr-scheduler-type",
    "seq-len": "max-length",
    "seq-length": "max-length",
    "steps": "max-steps",
    "targets": "target-modules",
    "test-size": "test-fraction",
    "text": "text-column",
    "train-batch-size": "per-device-train-batch-size",
    "val-split": "eval-split",
    "warmup": "warmup-steps",
    "warmup-ratio": "warmup-steps",
    "wd": "weight-decay",
    "workers": "dataloader-num-workers",
}
"""Last parts of flags of other tools, and those that they are called here."""
EQUAL = {"block-size": "max-length", "max-length": "block-size", "lora-dropout": "dropout"}
"""Fields that some tasks or models have in place of the other."""


def parse_words(target: Any, words: Sequence[str], *, program: str, **options: Any) -> Any:
    """Return a dataclass, or call a function, with the values of the words after a program.

    `options` are tyro's. Raise RecipeError for unknown flags, before a function is called.
    """
    honour_no_color()
    is_function = not isinstance(target, type)
    parsed, unknown = tyro.cli(
        deferred(target) if is_function else target,
        prog=program,
        args=list(words),
        return_unknown_args=True,
        **options,
    )
    if unknown:
        known = flags_in(help_of(target, program=program, **options))
        raise RecipeError(unknown_words(unknown, known, program))
    return parsed() if is_function else parsed


def deferred(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the same signature that returns the call to make."""

    @functools.wraps(function)
    def bind(*arguments: Any, **options: Any) -> Any:
        return functools.partial(function, *arguments, **options)

    return bind


def help_of(target: Any, *, program: str, **options: Any) -> str:
    """Return what --help prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(target, prog=program, args=["--help"], **options)
    return text.getvalue()


def flags_in(text: str) -> list[str]:
    """Return the flags, without dashes, at the beginnings of the lines of a help text."""
    lines = re.findall(r"^\W*?(?:-\w, )?(--\w.*)$", text, re.MULTILINE)
    flags = (flag for line in lines for flag in re.findall(r"--(\w[\w.-]*)", line))
    return list(dict.fromkeys(flags))


def unknown_words(words: Sequence[str], known: Sequence[str], program: str) -> list[Problem]:
    """Return a problem for each unknown flag, or for words that follow none."""
    flags = [word for word in words if word.startswith("--")]
    if not flags:
        text = f"{' '.join(words)!r} is too much. --help lists what it takes."
        return [Problem(program, text)]
    problems = []
    for name in dict.fromkeys(flag.split("=")[0][2:].replace("_", "-") for flag in flags):
        close = nearest_flags(name, known)
        hint = f"Did you mean {' or '.join(f'--{each}' for each in close)}? " if close else ""
        path = name.replace("-", "_")
        problems.append(Problem(path, f"unknown. {hint}--help lists all flags."))
    return problems


def nearest_flags(name: str, known: Sequence[str]) -> list[str]:
    """Return the flags that an unknown one may have been meant to be, the likeliest first.

    The last part decides: its synonym, the same part elsewhere, or a similar one.
    """
    section, _, last = name.rpartition(".")
    ends = {each: each.rpartition(".")[2] for each in known}
    synonym = SYNONYMS.get(last)
    for wanted in (last, synonym, EQUAL.get(last), EQUAL.get(synonym or "")):
        same = [flag for flag, end in ends.items() if end == wanted]
        if same:
            return sorted(same, key=lambda flag: not (section and flag.startswith(section)))[:2]
    if close := get_close_matches(name, known, n=1, cutoff=0.8):
        return close
    if close := get_close_matches(last, dict.fromkeys(ends.values()), n=1, cutoff=0.7):
        return [flag for flag, end in ends.items() if end == close[0]][:2]
    return []
