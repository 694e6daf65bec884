"""The parts of a recipe: frozen values. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Precision = Literal["fp32", "bf16", "8bit", "4bit"]
"""Precision of the weights of a base that is loaded, in place of a recipe's."""
TrackerName = Literal["tensorboard", "trackio", "wandb", "mlflow"]
"""Experiment trackers that a run can log to."""
SIZES: dict[str, tuple[int, int, int]] = {  # layers, heads, width
    "tiny": (2, 2, 128),
    "mini": (4, 4, 256),
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
    "xl": (48, 25, 1600),
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A decoder checkpoint."""

    name_or_path: str
    """Hub id or local folder."""
    revision: str | None = None
    """Commit, branch or tag on the Hub."""
    tokenizer: str | None = None
    """Hub id or local folder of the tokenizer, for a checkpoint without one."""
    tokenizer_revision: str | None = None
    """Commit, branch or tag of the tokenizer on the Hub."""

    @property
    def tokenizer_source(self) -> tuple[str, str | None]:
        """Hub id or folder of the tokenizer, and its revision."""
        if self.tokenizer is None:
            return self.name_or_path, self.revision
        return self.tokenizer, self.tokenizer_revision


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer trained on the training rows as part of the run."""

    kind: Literal["bpe", "char"] = "bpe"
    """Byte-level BPE, or one token for each character."""
    vocab_size: Annotated[int, Ge(257)] = 8192
    """Tokens of the BPE; a character tokenizer has one for each character of the text."""


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A GPT-2 with random weights."""

    size: Literal["tiny", "mini", "small", "medium", "large", "xl"] = "small"
    """GPT-2's sizes small to xl, and tiny and mini for CPUs."""
    tokenizer: Tokenizer | Model = field(default_factory=Tokenizer)
    """Tokenizer to train, or the checkpoint whose tokenizer is used."""
    n_positions: Annotated[int, Ge(8)] = 1024
    """Most tokens of an input."""
    n_layer: Annotated[int, Ge(1)] | None = None
    """Layers; by default those of the size."""
    n_head: Annotated[int, Ge(1)] | None = None
    """Attention heads; by default those of the size."""
    n_embd: Annotated[int, Ge(1)] | None = None
    """Width; by default that of the size."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout of embeddings, attention and residuals."""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Layers, heads and width: those that are given, or the size's."""
        layers, heads, width = SIZES[self.size]
        return self.n_layer or layers, self.n_head or heads, self.n_embd or width


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Load the base in 8 bits, LLM.int8()."""

    llm_int8_threshold: Annotated[float, Ge(0)] = 6.0
    """Columns with activations above this are computed in higher precision."""


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
    target_modules: tuple[str, ...] = ("all-linear",)
    """Linear layers to adapt, by the ends of their names; all-linear is all but the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r)."""
    use_dora: bool = False
    """Split weights into magnitude and direction."""
    init_lora_weights: Literal["default", "gaussian", "pissa", "olora", "orthogonal"] = "default"
    """PEFT's initialisation."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Train towards the outputs of a teacher, next to the labels (Hinton et al. 2015)."""

    teacher: str
    """Folder or Hub id of a result of the same task, labels and tokenizer."""
    revision: str | None = None
    """Commit, branch or tag of the teacher on the Hub."""
    temperature: Annotated[float, Gt(0)] = 2.0
    """Both models' logits are divided by this; higher values weigh unlikely labels more."""
    weight: Annotated[float, Gt(0), Le(1)] = 0.5
    """Part of the loss that is the teacher's; the rest is the task's own."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How to optimise. The Accelerate config sets the machine and the precision."""

    learning_rate: Annotated[float, Gt(0), Lt(10)] = 2e-4
    """Peak learning rate."""
    num_train_epochs: Annotated[float, Gt(0)] = 3.0
    """Passes over the training rows."""
    max_steps: Annotated[int, Gt(0)] | None = None
    """Optimizer steps; replaces num_train_epochs."""
    global_batch_size: Annotated[int, Ge(1)] = 32
    """Rows of an optimizer step on all processes; determines gradient accumulation."""
    per_device_train_batch_size: Annotated[int, Ge(1)] = 32
    """Most rows of a forward pass on a device."""
    per_device_eval_batch_size: Annotated[int, Ge(1)] = 32
    """Rows of an evaluation batch on a device."""
    warmup_steps: Annotated[float, Ge(0)] = 0.06
    """Steps of linear warm-up; below 1, a fraction of all steps."""
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Learning rate schedule after the warm-up."""
    min_learning_rate: Annotated[float, Ge(0)] = 0.0
    """Learning rate at the end of a cosine schedule."""
    optim: Literal["adamw_torch_fused", "adamw_bnb_8bit", "muon"] = "adamw_torch_fused"
    """AdamW, AdamW with 8-bit state (a quarter of its memory), or Muon for random weights."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Weight decay of all parameters but biases and norms."""
    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """AdamW's first beta."""
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """AdamW's second beta."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    """Gradient norm to which larger gradients are clipped."""
    logging_steps: Annotated[int, Ge(1)] | None = None
    """Steps between two logs; by default 1 % of all, at most 50. If given, each is printed."""
    report_to: tuple[TrackerName, ...] = ()
    """Experiment trackers that get the metrics as well; each needs the extra of its name."""
    eval_steps: Annotated[int, Ge(1)] | None = None
    """Steps between evaluations; None evaluates at the end only."""
    save_steps: Annotated[int, Ge(1)] | None = 500
    """Steps between checkpoints, from which the same command resumes; None disables them."""
    keep: Literal["last", "best"] = "last"
    """Weights of the result: those of the last step, or of the best evaluation (eval_steps)."""
    metric_for_best: str | None = None
    """Metric by which an evaluation is the best; by default the task's primary metric."""
    early_stopping_patience: Annotated[int, Ge(1)] | None = None
    """Stop after this many evaluations in a row that are not better than the best."""
    early_stopping_threshold: Annotated[float, Ge(0)] = 0.0
    """Least gain over the best for an evaluation to count as better."""
    activation_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass, to keep only its input."""
    torch_compile: bool = False
    """Compile the model's blocks; the first steps, and a second length of rows, wait for it."""
    dataloader_num_workers: Annotated[int, Ge(0), Le(64)] = 0
    """DataLoader worker processes, which collate batches."""
    ddp_timeout: Annotated[int, Ge(20)] = 600
    """Seconds after which a process that others wait for counts as lost, and the others end."""
    seed: Annotated[int, Ge(0)] = 42
    """Seed of weights, dropout and row order."""

    @property
    def chooses(self) -> bool:
        """Tell whether the validation split decides which weights the result has."""
        return self.keep == "best" or self.early_stopping_patience is not None

    def num_steps(self, num_rows: int) -> int:
        """Return the optimizer steps of a run on a number of rows; below 0, on a stream."""
        if self.max_steps or num_rows < 0:
            return self.max_steps or 0
        return math.ceil(self.num_train_epochs * math.ceil(num_rows / self.global_batch_size))
