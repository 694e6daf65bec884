"""The parts of a recipe: frozen values. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

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
