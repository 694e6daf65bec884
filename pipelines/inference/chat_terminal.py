"""A conversation in the terminal, or through a pipe."""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module

from rich.cells import cell_len

from pipelines.errors import DataError
from pipelines.hub.load import LoadedResult
from pipelines.inference.chat import fit_turns, write_reply
from pipelines.inference.generate import strip_reply
from pipelines.inference.loading import load_to_infer
from pipelines.process import quiet_libraries
from pipelines.recipe.generation import merge_options
from pipelines.recipe.values import Precision
from pipelines.tasks.generation import Generation, GenerationOptions, Turn

COMMANDS = {
    "/reset": "forget the conversation",
    "/help": "list the commands",
    "/quit": "end, as Ctrl-D does",
}
PART = re.compile(r"\n|[^\S\n]+|\S+")
"""A line break, spaces, or a word."""


@quiet_libraries()
def chat(
    repo: str,
    options: GenerationOptions,
    *,
    seed: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
) -> None:
    """Reply to each line of standard input, on a terminal with commands and Ctrl-C.

    `options` replace the recipe's. Raise RecipeError for options that are out of range, and
    DataError for a task that writes no text; from a pipe, also for a line that is too long.
    """
    loaded = load_to_infer(repo, revision, base=base, precision=precision)
    generation = merge_options(loaded.recipe.task, options)
    Chat(loaded, generation, seed, at_terminal=sys.stdin.isatty()).run()


class Chat:
    """A conversation: each line of standard input is a message or a command.

    Only replies go to standard output. At a terminal, what is wrong with a message does not end
    the conversation.
    """

    def __init__(
        self, loaded: LoadedResult, generation: Generation, seed: int | None, *, at_terminal: bool
    ):
        self.loaded, self.generation, self.seed = loaded, generation, seed
        self.at_terminal = at_terminal
        self.turns: list[Turn] = []

    def run(self) -> None:
        """Reply to each line until /quit or the end of the input."""
        if self.at_terminal:
            with suppress(ImportError):
                import_module("readline")  # lets input() edit the line and recall earlier ones
            note(f"{self.loaded.recipe.name}. {self.loaded.recipe.task.chat_hint}")
            note("/help lists the commands. Ctrl-C stops a reply, Ctrl-D ends.")
        while (line := self.read_line()) is not None and line.strip() != "/quit":
            if line.startswith("/"):
                self.command(line.strip())
            elif line.strip():
                self.reply(line)

    def read_line(self) -> str | None:
        """Return the next line, None at the end. Ctrl-C clears what was typed at a terminal."""
        if not self.at_terminal:
            line = sys.stdin.buffer.readline()
            return line.decode(errors="replace").rstrip("\r\n") if line else None
        while True:
            try:
                return input("> " if sys.stdout.isatty() else "")
            except EOFError:
                print(file=sys.stderr)
                return None
            except KeyboardInterrupt:
                print(file=sys.stderr)

    def reply(self, message: str) -> None:
        """Reply, at a terminal until Ctrl-C. Say what is wrong with a message, or raise it."""
        try:
            self.print_reply(message)
        except KeyboardInterrupt:
            if not self.at_terminal:
                raise
            note("Stopped.")
        except DataError as error:
            if not self.at_terminal:
                raise
            note(str(error))

    def print_reply(self, message: str) -> None:
        """Print the reply to a message, and keep both for the next one."""
        prompt, num_dropped = fit_turns(self.loaded, self.turns, message, self.generation)
        if num_dropped:
            del self.turns[:num_dropped]
            turns = "turn is" if num_dropped == 1 else f"{num_dropped} turns are"
            note(f"The oldest {turns} dropped: the model's positions are full.")
        pieces: list[str] = []
        printer = Printer()

        def write(piece: str) -> None:
            pieces.append(piece)
            printer.print(piece)

        try:
            write_reply(self.loaded, prompt, self.generation, seed=self.seed, write=write)
        finally:
            print(flush=True)
            if written := strip_reply(self.loaded.recipe.task, "".join(pieces)):
                self.turns.append(Turn(message, written))

    def command(self, name: str) -> None:
        """Do what a command says."""
        if name == "/reset":
            self.turns.clear()
            note("The conversation begins again.")
        elif name == "/help":
            for each, meaning in COMMANDS.items():
                note(f"{each:<7} {meaning}")
            note("Any other line is a message. Begin it with a space if it begins with a slash.")
        else:
            close = get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean {close[0]}?" if close else "/help lists the commands."
            note(f"{name}: no such command. {hint}")


class Printer:
    """Prints a reply while it comes; on a terminal it breaks lines between words."""

    def __init__(self) -> None:
        self.width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self.column = 0

    def print(self, text: str) -> None:
        """Print the next words."""
        text = "".join(map(visible, text))
        if self.width is not None:
            text = "".join(self.broken(part, self.width) for part in PART.findall(text))
        print(text, end="", flush=True)

    def broken(self, part: str, width: int) -> str:
        """Return a part of a line, or a line break before it or in its place."""
        if part == "\n":
            self.column = 0
            return part
        size = cell_len(part)
        if not part.strip():
            full = self.column + size >= width
            self.column = 0 if full else self.column + size
            return "\n" if full else part
        begins = self.column > 0 and self.column + size > width
        self.column = (size if begins else self.column + size) % width or width
        return "\n" * begins + part


def visible(character: str) -> str:
    """Return a character that cannot move the cursor: controls are escaped, spaces are plain."""
    if character.isprintable() or character == "\n":
        return character
    return (
        " "
        if unicodedata.category(character) == "Zs" or character == "\t"
        else ascii(character)[1:-1]
    )


def note(line: str) -> None:
    """Print what is not part of a reply."""
    print(f"({line})", file=sys.stderr, flush=True)
