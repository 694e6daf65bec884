"""A recipe: what to train, on what and how. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.data.source import DEFAULT_TEST_FRACTION
from pipelines.errors import Problem, RecipeError
from pipelines.recipe import rules
from pipelines.recipe.schema import from_json_value, to_json_value, wrong_values
from pipelines.recipe.values import NF4, Distillation, Int8, Lora, Model, Scratch, Train
from pipelines.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train, on what and how."""

    name: str
    """Name of the run, and of its folder below runs/."""
    task: Task
    """What the model learns."""
    model: Model | Scratch
    """Checkpoint or random weights to start from."""
    quantization: Int8 | NF4 | None = None
    """Quantization of the frozen base."""
    lora: Lora | None = None
    """Adapter to train."""
    train: Train = field(default_factory=Train)
    """How to optimise."""
    distillation: Distillation | None = None
    """Teacher to learn from, next to the labels."""
    output_dir: str | None = None
    """Folder of the result; runs/<name> if not given."""
    push_to: str | None = None
    """Hub repository to publish the result to, as USER/NAME; private unless `public` is set."""
    public: bool = False
    """Make the published repository public."""
    license: str | None = None
    """Licence id on the Hub of the published result; without one, the base's, or "other"."""
    allow_changed: tuple[str, ...] = ()
    """Fields that may have other values than in the run whose checkpoint is resumed."""
    overwrite: bool = False
    """Replace a finished result in the folder, as soon as the new one is complete."""
    log_format: Literal["text", "json"] = "text"
    """Print lines for people, or JSON lines for machines."""

    def __post_init__(self) -> None:
        problems = [*wrong_values(self, ""), *self.wrong_combinations()]
        if problems:
            raise RecipeError(problems)

    @property
    def folder(self) -> Path:
        """Folder of the result."""
        return Path(self.output_dir or f"runs/{self.name}")

    @property
    def chooses(self) -> bool:
        """Tell whether anything in the result is chosen by the validation split."""
        return self.train.chooses or bool(self.task.tunes)

    def with_test_rows(self) -> Recipe:
        """Return the recipe that holds out test rows if something is chosen and none are given.

        A stream holds out none.
        """
        source = self.task.dataset
        given = source.test_fraction is not None or source.test_split is not None
        if given or not self.chooses or source.streaming:
            return self
        source = replace(source, test_fraction=DEFAULT_TEST_FRACTION)
        return replace(self, task=replace(self.task, dataset=source))

    def wrong_combinations(self) -> Iterator[Problem]:
        """Yield the problems that no single field shows."""
        yield from rules.wrong_name(self.name)
        yield from rules.wrong_repo_id(self.push_to)
        yield from rules.wrong_license(self.license)
        yield from rules.wrong_task(self.task)
        yield from rules.wrong_reference(self.task, self.lora)
        yield from rules.wrong_quantization(self.quantization, self.lora)
        yield from rules.wrong_tokenizer(self.model)
        yield from rules.wrong_optimizer(self.train, self.model)
        yield from rules.wrong_scratch(self.model, self.lora, self.task)
        yield from rules.wrong_splits(self.task.dataset, self.chooses)
        yield from rules.wrong_choice(self.train, self.task)
        yield from rules.wrong_distillation(self.distillation, self.task)
        yield from rules.wrong_stream(self.task, self.model, self.train)

    def to_json(self) -> str:
        """Return the recipe as JSON that `from_json` reads back to an equal value."""
        return json.dumps(to_json_value(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read `to_json`'s form. Raise RecipeError with every unknown key and wrong type."""
        problems: list[Problem] = []

        def noting_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            keys = [key for key, _ in pairs]
            duplicates = sorted({key for key in keys if keys.count(key) > 1})
            problems.extend(Problem(key, "is duplicated.") for key in duplicates)
            return dict(pairs)

        try:
            value = json.loads(text, object_pairs_hook=noting_duplicates)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            raise RecipeError([Problem("recipe.json", f"is not JSON: {error}")]) from None
        built = from_json_value(cls, value, "", problems)
        if problems:
            raise RecipeError(problems)
        assert isinstance(built, Recipe)
        return built

    @classmethod
    def from_file(cls, file: Path) -> Recipe:
        """Read a recipe.json. Raise RecipeError, as `from_json` does."""
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            text = f"is not UTF-8 at byte {error.start}."
            raise RecipeError([Problem("recipe.json", text)]) from None
