"""Run a recipe, or the words of `gpt2-recipes`, with --help; fail if that imports a heavy library.

python show_help.py RECIPE.py|VERB [WORD]...
"""

import runpy
import sys

HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate"}


def show_help(words: list[str]) -> None:
    """Print the help of a command."""
    if words[0].endswith(".py"):
        sys.argv = [words[0], "--help"]
        runpy.run_path(words[0], run_name="__main__")
    else:
        from pipelines.cli import console

        sys.argv = ["gpt2-recipes", *words, "--help"]
        console()


if __name__ == "__main__":
    try:
        show_help(sys.argv[1:])
    except SystemExit as stop:
        if stop.code:
            raise
    if found := HEAVY & set(sys.modules):
        sys.exit(f"imported: {found}")
