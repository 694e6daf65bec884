"""Options of generation that replace those of a recipe, checked. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from pipelines.errors import RecipeError
from pipelines.recipe.schema import wrong_values
from pipelines.tasks.base import Task
from pipelines.tasks.generation import Generation, GenerationOptions


def merge_options(task: Task, options: GenerationOptions) -> Generation:
    """Return the task's generation with these options. Raise RecipeError if one is out of range."""
    generation = replace(task.default_generation, **options)
    if problems := list(wrong_values(generation, "")):
        raise RecipeError(problems)
    return generation
