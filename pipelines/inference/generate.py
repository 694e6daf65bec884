"""Continue a text, or the rows of a file, with a result."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from pipelines.data.rows import Examples
from pipelines.errors import Problem, RecipeError
from pipelines.hub.load import Loaded, Precision, load_result
from pipelines.inference.resumable_jsonl import answer_file
from pipelines.models.generation import check_room, continue_prompts
from pipelines.process import quiet_libraries
from pipelines.recipe.schema import wrong_values
from pipelines.tasks.base import Task
from pipelines.tasks.generation import Continuation, Generation, GenerationOptions


@quiet_libraries()
def generate_text(
    repo: str,
    text: str,
    typed: GenerationOptions,
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
    task.check_generates()
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
    typed: GenerationOptions,
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
    options = generation_options(loaded.recipe.task, typed)

    def answers(examples: Examples) -> list[dict[str, Any]]:
        replies = generate_replies(loaded, examples, typed, batch_size=batch_size, seed=seed)
        return [asdict(reply) for reply in replies]

    made_by = {"command": "generate", "result": loaded.sha256, "base": base, "precision": precision}
    made_by |= asdict(options) | {"seed": seed}
    answer_file(file, answers, out, made_by, chunk_size=4 * batch_size)


@quiet_libraries()
def generate_replies(
    loaded: Loaded,
    examples: Examples,
    typed: GenerationOptions,
    *,
    batch_size: int = 16,
    seed: int | None = None,
) -> list[Continuation]:
    """Return what a result writes after each row, in order.

    Raise RecipeError for options that are out of range, and DataError for a row that cannot be used
    and for a task that writes no text.
    """
    task, model, tokenizer = loaded.recipe.task, loaded.model, loaded.tokenizer
    options = generation_options(task, typed)
    prompts = task.prompts(examples, tokenizer)
    check_room(model, prompts, examples.locate)
    written = continue_prompts(model, tokenizer, prompts, options, batch_size=batch_size, seed=seed)
    return [replace(each, text=strip_reply(task, each.text)) for each in written]


class ReplyStreamer(TextStreamer):
    """Print a text as it is written; a reply from its first word."""

    def __init__(self, task: Task, tokenizer: Any):
        super().__init__(
            tokenizer,
            skip_prompt=True,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        self.at_start = task.writes_replies

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.at_start:
            text = text.lstrip()
            self.at_start = not text
        super().on_finalized_text(text, stream_end)


def strip_reply(task: Task, text: str) -> str:
    """Return a reply without the space that joins it to its prompt, and other texts as they are."""
    return text.strip() if task.writes_replies else text


def generation_options(task: Task, typed: GenerationOptions) -> Generation:
    """Return the task's options with those that were typed. Raise RecipeError if they are wrong."""
    options = replace(task.default_generation, **typed)
    if problems := list(wrong_values(options, "")):
        raise RecipeError(problems)
    return options
