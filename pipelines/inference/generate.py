"""Continue a text, or the rows of a file, with a result."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from pipelines.data.rows import Examples
from pipelines.errors import Problem, RecipeError
from pipelines.hub.load import Precision, load_result
from pipelines.inference.resumable_jsonl import answer_file
from pipelines.models.generation import check_room, continue_prompts
from pipelines.process import quiet_libraries
from pipelines.recipe.schema import wrong_values
from pipelines.tasks.base import Task
from pipelines.tasks.generation import Generation
from pipelines.tasks.replies import ReplyTask


@quiet_libraries()
def generate_text(
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
    loaded = load_result(repo, revision, base=base, precision=precision)
    task, tokenizer = loaded.recipe.task, loaded.tokenizer
    options = generation_options(task, typed)
    prompts = task.prompts(Examples([task.row(text)], "TEXT"), tokenizer)
    check_room(loaded.model, prompts, lambda _: "TEXT")
    if options.num_beams > 1:
        (found,) = continue_prompts(loaded.model, tokenizer, prompts, options, seed=seed)
        print(strip_reply(task, found.text))
        return
    shown = ReplyStreamer(task, tokenizer)
    continue_prompts(loaded.model, tokenizer, prompts, options, seed=seed, streamer=shown)


@quiet_libraries()
def generate_file(
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
    """Continue each row of a file, as `pipelines.inference.resumable_jsonl.answer_file` does."""
    loaded = load_result(repo, revision, base=base, precision=precision)
    task, tokenizer = loaded.recipe.task, loaded.tokenizer
    options = generation_options(task, typed)
    made_by = {"command": "generate", "result": loaded.sha256, "base": base, "precision": precision}

    def answers(examples: Examples) -> list[dict[str, Any]]:
        prompts = task.prompts(examples, tokenizer)
        check_room(loaded.model, prompts, examples.locate)
        found = continue_prompts(
            loaded.model, tokenizer, prompts, options, batch_size=batch_size, seed=seed
        )
        return [{"text": strip_reply(task, each.text), "ended": each.ended} for each in found]

    made_by |= asdict(options) | {"seed": seed}
    answer_file(file, answers, out, made_by, chunk_size=4 * batch_size)


class ReplyStreamer(TextStreamer):
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


def strip_reply(task: Task, text: str) -> str:
    """Return a reply without the space that joins it to its prompt, and other texts as they are."""
    return text.strip() if isinstance(task, ReplyTask) else text


def generation_options(task: Task, typed: dict[str, Any]) -> Generation:
    """Return the task's options with those that were typed. Raise RecipeError if they are wrong."""
    options = replace(task.default_generation, **typed)
    if problems := list(wrong_values(options, "")):
        raise RecipeError(problems)
    return options
