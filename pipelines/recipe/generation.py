"""Options of generation that replace those of a recipe, checked. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.schema import wrong_values
from pipelines.tasks.base import Task
from pipelines.tasks.generation import Generation, GenerationOptions


def merge_options(task: Task, options: GenerationOptions) -> Generation:
    """Return the task's generation with these options. Raise RecipeError if one is out of range."""
    generation = replace(task.default_generation, **options)
    if problems := list(wrong_values(generation, "")):
        raise RecipeError(problems)
    return generation


def check_greedy(flag: str, options: Generation, *, num_at_once: int) -> None:
    """Raise RecipeError, which names `flag`, unless texts are greedy, one at a time."""
    rules = (
        (options.do_sample, "--do-sample would draw other tokens. Use --no-do-sample."),
        (options.num_beams > 1, "a beam search checks no proposals. Use --num-beams 1."),
        (num_at_once > 1, "texts are written one at a time. Use --batch-size 1."),
    )
    if problems := [Problem(flag, message) for broken, message in rules if broken]:
        raise RecipeError(problems)
