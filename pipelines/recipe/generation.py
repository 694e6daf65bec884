"""Options of generation that replace those of a recipe, checked. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.schema import wrong_values
from pipelines.tasks.base import Task
from pipelines.tasks.generation import Generation, GenerationOptions

OF_SAMPLING = ("temperature", "top_k", "top_p")


def merge_options(task: Task, options: GenerationOptions) -> Generation:
    """Return the task's generation with these options.

    Raise RecipeError for one that is out of range, and for one that would change nothing.
    """
    default = task.default_generation
    generation = replace(default, **options)
    if problems := list(wrong_values(generation, "")):
        raise RecipeError(problems)
    changed = {name: value for name, value in options.items() if value != getattr(default, name)}
    if problems := list(without_effect(changed, generation)):
        raise RecipeError(problems)
    return generation


def without_effect(changed: Mapping[str, object], generation: Generation) -> Iterator[Problem]:
    """Yield the changed options that the kind of search does not read."""
    for name, value in changed.items():
        if name in OF_SAMPLING and not generation.do_sample:
            text = f"{value} would change nothing, since no tokens are sampled. Add --do-sample."
            yield Problem(name, text)
        if name == "length_penalty" and generation.num_beams == 1:
            text = f"{value} would change nothing without a beam search. Add --num-beams 4."
            yield Problem(name, text)


def check_greedy(flag: str, options: Generation, *, num_at_once: int) -> None:
    """Raise RecipeError, which names `flag`, unless texts are greedy, one at a time."""
    rules = (
        (options.do_sample, "--do-sample would draw other tokens. Use --no-do-sample."),
        (options.num_beams > 1, "a beam search checks no proposals. Use --num-beams 1."),
        (num_at_once > 1, "texts are written one at a time. Use --batch-size 1."),
    )
    if problems := [Problem(flag, message) for broken, message in rules if broken]:
        raise RecipeError(problems)
