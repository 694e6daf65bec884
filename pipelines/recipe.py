"""A recipe: a frozen value that says what to train, on what and how. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from pipelines.errors import Problem, RecipeError
from pipelines.fields import build, plain, wrong_values
from pipelines.tasks import CausalLM, PreferenceTuning, Task

SIZES: dict[str, tuple[int, int, int]] = {  # layers, heads, width
    "tiny": (2, 2, 128),
    "mini": (4, 4, 256),
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
    "xl": (48, 25, 1600),
}
PLAIN_NAME = re.compile(r"[\w-][\w.-]*")
PLAIN_INITS = ("default", "gaussian")  # what LoRA can start from on a quantised base


@dataclass(frozen=True, kw_only=True)
class Model:
    """A decoder checkpoint."""

    name_or_path: str
    """Hub id or local folder."""
    revision: str | None = None
    """Commit, branch or tag on the Hub."""
    tokenizer: str | None = None
    """Hub id or local folder of the tokenizer, where the checkpoint has none."""
    tokenizer_revision: str | None = None
    """Commit, branch or tag of the tokenizer on the Hub."""

    @property
    def tokenizer_source(self) -> tuple[str, str | None]:
        """Where the tokenizer is, and its revision."""
        if self.tokenizer is None:
            return self.name_or_path, self.revision
        return self.tokenizer, self.tokenizer_revision


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer trained on the training rows as part of the run."""

    kind: Literal["bpe", "char"] = "bpe"
    """Byte-level BPE, or one token for each character."""
    vocab_size: Annotated[int, Ge(257)] = 8192
    """Tokens of the BPE; a character tokenizer takes what the text has."""


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A GPT-2 with random weights."""

    size: Literal["tiny", "mini", "small", "medium", "large", "xl"] = "small"
    """tiny and mini are for CPUs; the others are GPT-2's own."""
    tokenizer: Tokenizer | Model = field(default_factory=Tokenizer)
    """A tokenizer to train, or the checkpoint to take one from."""
    n_positions: Annotated[int, Ge(8)] = 1024
    """Tokens of the longest input."""
    n_layer: Annotated[int, Ge(1)] | None = None
    """Layers, in place of the size's."""
    n_head: Annotated[int, Ge(1)] | None = None
    """Attention heads, in place of the size's."""
    n_embd: Annotated[int, Ge(1)] | None = None
    """Width, in place of the size's."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout of embeddings, attention and residuals."""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Layers, heads and width after the overrides."""
        layers, heads, width = SIZES[self.size]
        return self.n_layer or layers, self.n_head or heads, self.n_embd or width


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Load the base in 8 bits, LLM.int8()."""

    llm_int8_threshold: Annotated[float, Ge(0)] = 6.0
    """Activations above this stay in higher precision."""


@dataclass(frozen=True, kw_only=True)
class NF4:
    """Load the base in 4 bits, NormalFloat."""

    bnb_4bit_use_double_quant: bool = True
    """Quantise the quantisation constants too."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Train a low-rank adapter instead of the base."""

    r: Annotated[int, Ge(1)] = 16
    """Rank."""
    lora_alpha: Annotated[int, Ge(1)] = 32
    """Scale: the update is multiplied by lora_alpha / r."""
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")
    """Modules to adapt, by the end of their names; "all-linear" for all but the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r)."""
    use_dora: bool = False
    """Split weights into magnitude and direction."""
    init_lora_weights: Literal["default", "gaussian", "pissa", "olora", "orthogonal"] = "default"
    """PEFT's initialisation."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How to optimise. The machine and the precision stand in the Accelerate config."""

    learning_rate: Annotated[float, Gt(0), Lt(10)] = 2e-4
    """Peak learning rate."""
    num_train_epochs: Annotated[float, Gt(0)] = 3.0
    """Passes over the training rows."""
    max_steps: Annotated[int, Gt(0)] | None = None
    """Optimizer steps, in place of epochs."""
    global_batch_size: Annotated[int, Ge(1)] = 32
    """Rows of one optimizer step over all processes; accumulation is derived from it."""
    per_device_train_batch_size: Annotated[int, Ge(1)] = 32
    """Most rows that a device holds at once."""
    per_device_eval_batch_size: Annotated[int, Ge(1)] = 32
    """Rows of an evaluation batch on a device."""
    warmup_steps: Annotated[float, Ge(0)] = 0.06
    """Steps of linear warm-up, or below 1 a share of all steps."""
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Shape of the learning rate after the warm-up."""
    min_learning_rate: Annotated[float, Ge(0)] = 0.0
    """Where a cosine schedule ends."""
    optim: Literal["adamw_torch_fused", "adamw_bnb_8bit", "muon"] = "adamw_torch_fused"
    """AdamW; AdamW with its state in 8 bits, a quarter of it; or Muon, for weights from scratch."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Weight decay, of all but biases and norms."""
    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """AdamW's first beta."""
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """AdamW's second beta."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    """Gradient norm above which gradients are scaled down."""
    logging_steps: Annotated[int, Ge(1)] = 50
    """Steps between two lines of the log."""
    eval_steps: Annotated[int, Ge(1)] | None = None
    """Steps between evaluations; None evaluates at the end."""
    save_steps: Annotated[int, Ge(1)] | None = 500
    """Steps between checkpoints, from which the same command resumes; None writes none."""
    torch_compile: bool = False
    """Compile the model; the first step, and each new length of rows, waits for the compiler."""
    dataloader_num_workers: Annotated[int, Ge(0), Le(64)] = 0
    """Processes that collate batches."""
    seed: Annotated[int, Ge(0)] = 42
    """Seed of weights, dropout and row order."""


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
        return json.dumps(plain(self), indent=2) + "\n"

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
        built = build(cls, value, "", problems)
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
