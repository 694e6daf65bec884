"""Continue a text, or the rows of a file, with a result."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from pipelines.errors import Problem, RecipeError
from pipelines.fields import wrong_values
from pipelines.generate import check_room, continue_prompts
from pipelines.hub import Precision, load_adapter
from pipelines.output import answer_file
from pipelines.report import quietly
from pipelines.tasks import Task
from pipelines.tasks.base import Examples, Generation
from pipelines.tasks.replies import ReplyTask


@quietly()
def write_text(
    repo: str,
    text: str,
    typed: dict[str, Any],
    *,
    seed: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
) -> None:
    """Print the continuation of a text: as it comes, or after its beam search.

    `typed` holds fields of Generation in place of the task's own. Raise RecipeError for options
    that cannot be and for an empty text, and DataError for a task that writes none.
    """
    if not text.strip():
        raise RecipeError([Problem("TEXT", "is empty. Give its beginning, or what to answer.")])
    loaded = load_adapter(repo, revision, base=base, precision=precision)
    task, tokenizer = loaded.recipe.task, loaded.tokenizer
    options = options_of(task, typed)
    prompts = task.prompts(Examples([task.row(text)], "TEXT"), tokenizer)
    check_room(loaded.model, prompts, lambda _: "TEXT")
    if options.num_beams > 1:
        (found,) = continue_prompts(loaded.model, tokenizer, prompts, options, seed=seed)
        print(said(task, found.text))
        return
    shown = Shown(task, tokenizer)
    continue_prompts(loaded.model, tokenizer, prompts, options, seed=seed, streamer=shown)


@quietly()
def write_file(
    repo: str,
    file: Path,
    typed: dict[str, Any],
    *,
    out: Path | None = None,
    seed: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    batch_size: int = 16,
) -> None:
    """Continue each row of a file, as `pipelines.output.answer_file` does."""
    loaded = load_adapter(repo, revision, base=base, precision=precision)
    task, tokenizer = loaded.recipe.task, loaded.tokenizer
    options = options_of(task, typed)
    made_by = {"command": "generate", "result": loaded.sha256, "base": base, "precision": precision}

    def answers(examples: Examples) -> list[dict[str, Any]]:
        prompts = task.prompts(examples, tokenizer)
        check_room(loaded.model, prompts, examples.where)
        found = continue_prompts(
            loaded.model, tokenizer, prompts, options, batch_size=batch_size, seed=seed
        )
        return [{"text": said(task, each.text), "ended": each.ended} for each in found]

    made_by |= asdict(options) | {"seed": seed}
    answer_file(file, answers, out, made_by, chunk_size=4 * batch_size)


class Shown(TextStreamer):
    """Print a text as it is written; a reply from its first word."""

    def __init__(self, task: Task, tokenizer: Any):
        super().__init__(
            tokenizer,
            skip_prompt=True,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        self.at_start = isinstance(task, ReplyTask)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.at_start:
            text = text.lstrip()
            self.at_start = not text
        super().on_finalized_text(text, stream_end)


def said(task: Task, text: str) -> str:
    """Return a reply without the space that joins it to its prompt, and other texts as they are."""
    return text.strip() if isinstance(task, ReplyTask) else text


def options_of(task: Task, typed: dict[str, Any]) -> Generation:
    """Return the task's options with those that were typed. Raise RecipeError if they are wrong."""
    options = replace(task.default_generation, **typed)
    if problems := list(wrong_values(options, "")):
        raise RecipeError(problems)
    return options
