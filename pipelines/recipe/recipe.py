"""A recipe: a frozen value that says what to train, on what and how. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.schema import from_json_value, to_json_value, wrong_values
from pipelines.recipe.values import NF4, Int8, Lora, Model, Scratch, Tokenizer, Train
from pipelines.tasks.base import Task
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.preference import PreferenceTuning

PLAIN_NAME = re.compile(r"[\w-][\w.-]*")
PLAIN_INITS = ("default", "gaussian")  # what LoRA can start from on a quantised base


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train, on what and how."""

    name: str
    """Name of the run, and of its folder below runs/."""
    task: Task
    """What the model learns."""
    model: Model | Scratch
    """What it starts from."""
    quantization: Int8 | NF4 | None = None
    """Precision of the frozen base."""
    lora: Lora | None = None
    """Adapter to train."""
    train: Train = field(default_factory=Train)
    """How to optimise."""
    output_dir: str | None = None
    """Folder of the result; runs/<name> if not given."""
    push_to: str | None = None
    """Hub repository to publish the result to, as USER/NAME; private, unless it is `public`."""
    public: bool = False
    """Publish for everybody to see."""
    license: str | None = None
    """Licence id of the published result, as the Hub spells it; without one, that of the base, or
    "other"."""
    allow_changed: tuple[str, ...] = ()
    """Fields that may differ from those of the run whose checkpoint is resumed."""
    overwrite: bool = False
    """Replace a finished result in the folder; it stays there until the new one is complete."""

    def __post_init__(self) -> None:
        problems = [*wrong_values(self, ""), *self.wrong_combinations()]
        if problems:
            raise RecipeError(problems)

    @property
    def folder(self) -> Path:
        """Folder of the result."""
        return Path(self.output_dir or f"runs/{self.name}")

    def wrong_combinations(self) -> Iterator[Problem]:
        """Yield what no single field can know."""
        if isinstance(self.name, str) and not PLAIN_NAME.fullmatch(self.name):
            text = f"{self.name!r} names no folder: letters, digits, '.', '-' and '_' do."
            yield Problem("name", text)
        if self.push_to is not None:
            yield from wrong_repo_id(self.push_to)
        for name, message in self.task.problems():
            yield Problem(f"task.{name}", message)
        if isinstance(self.task, PreferenceTuning):
            yield from self.wrong_reference()
        if self.quantization and not self.lora:
            yield Problem(
                "quantization",
                "8-bit and 4-bit weights cannot be trained. Add lora=Lora() to train an adapter "
                "on them, or drop quantization.",
            )
        if self.quantization and self.lora and self.lora.init_lora_weights not in PLAIN_INITS:
            yield Problem(
                "lora.init_lora_weights",
                f"{self.lora.init_lora_weights!r} starts from the base's weights, which are "
                f"quantised. Allowed: {', '.join(PLAIN_INITS)}.",
            )
        if isinstance(self.model, Model):
            if self.model.tokenizer is None and self.model.tokenizer_revision is not None:
                text = "a revision of no tokenizer. Set model.tokenizer too."
                yield Problem("model.tokenizer_revision", text)
        elif isinstance(self.model.tokenizer, Model) and self.model.tokenizer.tokenizer:
            text = "a tokenizer has no other tokenizer. Name that one as name_or_path."
            yield Problem("model.tokenizer.tokenizer", text)
        if self.train.optim == "muon" and not isinstance(self.model, Scratch):
            text = "'muon' is for weights from scratch. Did you mean adamw_torch_fused?"
            yield Problem("train.optim", text)
        if isinstance(self.model, Scratch):
            if self.lora:
                yield Problem("lora", "an adapter needs pretrained weights. Use model=Model(...).")
            layers, heads, width = self.model.widths
            if width % heads:
                yield Problem("model.n_embd", f"{width} is not a multiple of {heads} heads.")
            if self.task.length > self.model.n_positions:
                yield Problem(
                    f"task.{self.task.length_field}",
                    f"{self.task.length} is above model.n_positions, {self.model.n_positions}.",
                )
        if self.task.dataset.eval_split == self.task.dataset.train_split:
            text = f"{self.task.dataset.eval_split!r} is the split to train on, too. "
            text += "Name another, or none to hold out a part of it."
            yield Problem("task.dataset.eval_split", text)
        if self.task.dataset.streaming:
            if not isinstance(self.task, CausalLM):
                yield Problem("task.dataset.streaming", "only CausalLM streams.")
            if self.train.max_steps is None:
                yield Problem("train.max_steps", "a stream has no end: set the number of steps.")
            if isinstance(self.model, Scratch) and isinstance(self.model.tokenizer, Tokenizer):
                yield Problem(
                    "model.tokenizer", "cannot be trained on a stream. Name a checkpoint's."
                )

    def wrong_reference(self) -> Iterator[Problem]:
        """Yield why the base with the adapter off would be no reference for DPO."""
        if self.lora is None:
            text = "the base with the adapter off is the reference of DPO. Add lora=Lora()."
            yield Problem("lora", text)
        elif self.lora.init_lora_weights not in PLAIN_INITS:
            yield Problem(
                "lora.init_lora_weights",
                f"{self.lora.init_lora_weights!r} moves a part of the base into the adapter, so "
                "that the base with the adapter off is no reference for DPO. Allowed: "
                f"{', '.join(PLAIN_INITS)}.",
            )

    def to_json(self) -> str:
        """Return the recipe as JSON that `from_json` reads back to an equal value."""
        return json.dumps(to_json_value(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read `to_json`'s form. Raise RecipeError with every unknown key and wrong type."""
        problems: list[Problem] = []

        def noting_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            keys = [key for key, _ in pairs]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            problems.extend(Problem(key, "is duplicated.") for key in twice)
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


def wrong_repo_id(repo: str) -> Iterator[Problem]:
    """Yield a problem unless `repo` is the id of a Hub repository of a user."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        yield Problem("push_to", f"{repo!r} is not of the form USER/NAME.")
