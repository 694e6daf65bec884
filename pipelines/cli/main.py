"""The entry point of `gpt2-recipes`: find the verb, and call it with the other words."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import version
from typing import Annotated, Any, Literal

import tyro

from pipelines.cli import machine, recipes, results, serving, training
from pipelines.flags import parse_words
from pipelines.terminal import report_errors, stop


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]) -> None:
    """Print what makes a shell complete the verbs and their flags.

    Write it for bash to `~/.local/share/bash-completion/completions/gpt2-recipes`,
    for zsh to `_gpt2-recipes` in a folder of `$fpath`, for fish to
    `~/.config/fish/completions/gpt2-recipes.fish`.

    Args:
        shell: The shell.
    """
    words, script = ["--tyro-print-completion", shell], io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="gpt2-recipes", args=words)
    # Without these bash completes no files, where no verb and no flag begins like the word
    print(script.getvalue().replace("\ncomplete -F", "\ncomplete -o bashdefault -o default -F"))


Verb = Callable[..., Any]
FAMILIES: dict[str, dict[str, Verb]] = {
    "Recipes": {
        "new": recipes.new,
        "list": recipes.list_recipes,
        "show": recipes.show,
        "plan": training.plan,
        "tokenize": training.tokenize,
    },
    "Train": {
        "run": training.run,
        "train": training.train,
        "repeat": training.repeat,
        "search": training.search,
    },
    "Use a result": {
        "evaluate": results.evaluate,
        "compare": results.compare,
        "report": results.report,
        "predict": results.predict,
        "generate": results.generate,
        "chat": results.chat,
        "demo": results.demo,
        "serve": serving.serve,
        "merge": results.merge,
        "compress": results.compress,
        "publish": results.publish,
        "lm-eval": results.lm_eval,
    },
    "This machine": {
        "doctor": machine.doctor,
        "hub": machine.hub,
        "selftest": machine.selftest,
        "completion": completion,
    },
}
"""The verbs in the order of the help. The first line of a docstring is the verb's line there."""
VERBS = {name: verb for verbs in FAMILIES.values() for name, verb in verbs.items()}
WITH_RECIPE: dict[str, Callable[[list[str]], None]] = {
    "show": recipes.show_words,
    "plan": training.plan_words,
    "tokenize": training.tokenize_words,
    "run": training.run_words,
    "train": training.train_words,
    "repeat": training.repeat_words,
    "search": training.search_words,
}
"""What reads the words of a verb itself, because the flags of a recipe are among them."""
EXIT_CODES = {
    0: "done",
    1: "a score that differs, a check that failed, or an error of this project",
    2: "a wrong value, in the recipe, on the command line, or of the Hub account",
    3: "rows that cannot be used",
    4: "a loss, gradient, weight or score that is not finite",
    5: "checkpoints that are damaged, or files that cannot be written",
    6: "not published; the result is complete on disk",
    75: "stopped by a signal; the same command resumes",
    130: "stopped by Ctrl-C",
}


def console() -> None:
    """Entry point of `gpt2-recipes`."""
    words = sys.argv[1:]
    with report_errors():
        if not words:
            stop(usage().splitlines(), 2)
        elif words in (["-h"], ["--help"]):
            print(usage())
        elif words == ["--version"]:
            print(f"gpt2-recipes {version('gpt2-recipes')}")
        else:
            call(words[0], words[1:])


def call(name: str, words: list[str]) -> None:
    """Call a verb with the words after it. Stop for an unknown one, naming the nearest."""
    if name not in VERBS:
        close = get_close_matches(name.replace("_", "-"), VERBS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Verbs: {', '.join(VERBS)}."
        stop([f"{name}: no such verb. {hint}"], 2)
    if name in WITH_RECIPE and words not in ([], ["-h"], ["--help"]):
        WITH_RECIPE[name](words)
    else:
        parse_words(VERBS[name], words, program=f"gpt2-recipes {name}")


def usage() -> str:
    """Return the text of --help."""
    lines = ["usage: gpt2-recipes VERB ...     gpt2-recipes VERB --help", ""]
    for family, verbs in FAMILIES.items():
        lines.append(f"{family}:")
        lines += [f"  {name:<11} {first_line(verb)}" for name, verb in verbs.items()]
        lines.append("")
    lines.append("Exit codes:")
    lines += [f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items()]
    lines += ["", "--version prints the version."]
    return "\n".join(lines)


def first_line(verb: Verb) -> str:
    """Return the first line of a verb's docstring."""
    return (verb.__doc__ or "").splitlines()[0]
