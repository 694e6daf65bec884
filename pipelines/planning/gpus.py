"""Estimate what fits on GPUs, in bfloat16 as accelerate_configs/single_gpu.yaml computes.

Nothing here was measured on a GPU. What a block holds and saves for its backward pass is counted
on a copy of two blocks with a small vocabulary, for each method; the rest is arithmetic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers

from pipelines.models.adapters import add_adapter
from pipelines.models.build import FUSED
from pipelines.models.linear_cross_entropy import CHUNK
from pipelines.models.quantization import computing_in, quantization_config
from pipelines.planning.batches import Batches
from pipelines.planning.blocks import Watch, blocks_of, module_bytes, trained_parameters
from pipelines.planning.parameters import Parameters, config_of, without_values
from pipelines.planning.rehearsal import shallow
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import NF4, Int8, Lora, Scratch
from pipelines.training.checkpoints import num_trained

CONTEXT = 800_000_000
"""Bytes of CUDA's context, its kernels and the workspaces of its libraries; an assumption."""
UTILISATION = 0.35
"""Of a GPU's bfloat16 rate that a run reaches; an assumption."""
BLOCK_SECONDS = 1e-3
"""Least seconds of a block's forward and backward pass, in which kernels are started; assumed."""
SMALL_VOCABULARY = 256
NUM_TOKENS = 127
"""Of the row that is counted; a prime, as no weight's dimension is."""
LOGIT_BYTES = 8
"""Of a logit of a loss: in bfloat16, its probability in fp32, and its gradient in bfloat16."""


@dataclass(frozen=True)
class Gpu:
    """A GPU. Its rate is the maker's, of dense bfloat16 products added in fp32."""

    name: str
    gigabytes: int
    teraflops: float


GPUS = (
    Gpu("RTX 4060, 8 GB", 8, 30),
    Gpu("RTX 4080, 16 GB", 16, 98),
    Gpu("L4, 24 GB", 24, 121),
    Gpu("A100, 40 GB", 40, 312),
    Gpu("H100, 80 GB", 80, 989),
)
METHODS: dict[str, Int8 | NF4 | None] = {
    "full": None,
    "LoRA": None,
    "8-bit": Int8(),
    "4-bit": NF4(),
}
"""Methods, and the quantisation of each; all but full train an adapter."""


@dataclass(frozen=True)
class Anatomy:
    """What one block, and everything outside of the blocks, adds with a method; bytes."""

    block_weights: int
    block_trained: int
    """Trainable parameters of a block."""
    block_casts: int
    """Weights in bfloat16, which are kept from the forward to the backward pass."""
    block_per_token: float
    """Activations that a token saves in a block."""
    input_per_token: float
    """What of them is the block's input."""
    outside_trained: int
    """Trainable parameters outside of the blocks, without the embeddings."""
    outside_per_token: float


@dataclass(frozen=True)
class GpuBytes:
    """What a method holds on a GPU; bytes."""

    weights: int
    casts: int
    """Weights of the blocks in bfloat16, kept from the forward to the backward pass."""
    gradients: int
    optimizer: int
    loss: int
    """Logits of a chunk of the loss, the head in bfloat16, and its gradient's sum."""
    per_row: float
    """Activations of a row of a forward pass."""

    @property
    def fixed(self) -> int:
        """Return what does not grow with the rows."""
        states = self.weights + self.casts + self.gradients + self.optimizer
        return CONTEXT + states + self.loss


@dataclass(frozen=True)
class Fit:
    """The largest forward pass of a step that fits on a GPU."""

    gpu: str
    gigabytes: int
    method: str
    rows: int
    """Rows of the forward pass, at most those of a step; 0 if not even one fits."""
    most_rows: int
    """Rows that would fit, where a step had as many."""
    bytes: int
    """Predicted peak with `rows`, or with one."""
    seconds: float | None
    """Predicted time of the run's training."""


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipe with each method that it can have."""
    if isinstance(recipe.model, Scratch):
        return {"full": recipe}
    lora = recipe.lora or Lora()
    found = {
        name: replace(recipe, lora=lora, quantization=quantization)
        for name, quantization in METHODS.items()
        if name != "full"
    }
    if recipe.task.needs_reference:  # the base is the reference of an adapter
        return found
    return {"full": replace(recipe, lora=None, quantization=None), **found}


def dissect(recipe: Recipe, labels: tuple[str, ...]) -> Anatomy:
    """Return the anatomy of a recipe's model with its method."""
    model = small_vocabulary_model(recipe, labels)
    model.train()
    num_tokens = min(NUM_TOKENS, recipe.task.length)
    ids = torch.arange(num_tokens)[None] % SMALL_VOCABULARY
    watch = Watch(model)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    with watch.watching(), autocast, computing_in(model, torch.bfloat16):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.base_model(input_ids=ids, attention_mask=torch.ones_like(ids))
    blocks = blocks_of(model)
    last = len(blocks) - 1
    block_trained = sum(each.numel() for each in trained_parameters(blocks[last]))
    embeddings = sum(
        each.numel()
        for module in base.base_model.modules()
        if isinstance(module, torch.nn.Embedding)
        for each in trained_parameters(module)
    )
    return Anatomy(
        block_weights=module_bytes(blocks[last]),
        block_trained=block_trained,
        block_casts=watch.casts.get(last, 0),
        block_per_token=watch.saved.get(last, 0) / num_tokens,
        input_per_token=watch.input_bytes / num_tokens,
        outside_trained=num_trained(model) - len(blocks) * block_trained - embeddings,
        outside_per_token=watch.saved.get(-1, 0) / num_tokens,
    )


def small_vocabulary_model(recipe: Recipe, labels: tuple[str, ...]) -> Any:
    """Return two blocks of a recipe's model with its method, and a small vocabulary."""
    auto: Any = getattr(transformers, recipe.task.auto_class)
    config = shallow(small_config(recipe, labels))
    if recipe.lora is None:
        return auto.from_config(config, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
        base = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            quantization_config=quantization_config(recipe.quantization),
        )
    return add_adapter(base, replace(without_values(recipe), quantization=recipe.quantization))


def small_config(recipe: Recipe, labels: tuple[str, ...]) -> Any:
    """Return the config of a recipe's model with a small vocabulary."""
    if isinstance(recipe.model, Scratch):
        layers, heads, width = recipe.model.widths
        config: Any = transformers.GPT2Config(
            n_layer=layers,
            n_head=heads,
            n_embd=width,
            n_positions=recipe.model.n_positions,
            activation_function="gelu_pytorch_tanh",
            **recipe.task.model_kwargs(labels),
        )
    else:
        config = config_of(recipe, labels)
    text = config.get_text_config()
    text.vocab_size = SMALL_VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, 0)
    # A GPU's attention saves no probabilities; a CPU's saves them where it drops some
    for name in ("attn_pdrop", "attention_dropout"):
        if hasattr(text, name):
            setattr(text, name, 0.0)
    activation = getattr(text, "activation_function", "")
    if activation in FUSED:
        text.activation_function = FUSED[activation]
    return config


def estimate_gpus(
    recipe: Recipe, labels: tuple[str, ...], parameters: Parameters, batches: Batches
) -> Iterator[Fit]:
    """Yield what fits on each GPU with each method.

    A forward pass has as many rows of a step as fit, all as long as the longest.
    """
    size = recipe.train.global_batch_size
    tokens = batches.mean_tokens * size / batches.rows
    for method, variant in variants(recipe).items():
        needed = gpu_bytes(variant, labels, parameters, batches.longest)
        fixed, row = needed.fixed, needed.per_row
        flops = tokens * flops_per_token(variant, parameters, batches.longest)
        for gpu in GPUS:
            most_rows = max(0, int((gpu.gigabytes * 1e9 - fixed) / row))
            rows = min(size, most_rows)
            computing = flops / (gpu.teraflops * 1e12 * UTILISATION)
            passes = -(-size // max(1, rows))
            starting = passes * parameters.num_layers * BLOCK_SECONDS
            yield Fit(
                gpu=gpu.name,
                gigabytes=gpu.gigabytes,
                method=method,
                rows=rows,
                most_rows=most_rows,
                bytes=int(fixed + max(1, rows) * row),
                seconds=batches.steps * max(computing, starting) if rows else None,
            )


def gpu_bytes(
    recipe: Recipe, labels: tuple[str, ...], parameters: Parameters, longest: int
) -> GpuBytes:
    """Return what a method takes on a GPU with rows of `longest` tokens."""
    anatomy, layers = dissect(recipe, labels), parameters.num_layers
    outside = parameters.base - parameters.in_blocks
    trained = anatomy.outside_trained + layers * anatomy.block_trained
    if recipe.lora is None:
        trained = parameters.base
    loss = 0
    if recipe.task.learns_tokens:  # the loss is computed in chunks
        embeddings = parameters.vocabulary * parameters.width
        loss = (
            LOGIT_BYTES * CHUNK["cuda"]
            + 2 * embeddings
            + (4 * embeddings if not recipe.lora else 0)
        )
    return GpuBytes(
        weights=4 * outside + layers * anatomy.block_weights,
        casts=layers * anatomy.block_casts,
        gradients=4 * trained,
        optimizer=(2 if recipe.train.optim == "adamw_bnb_8bit" else 8) * trained,
        loss=loss,
        per_row=longest * activations_per_token(recipe, anatomy, layers),
    )


def activations_per_token(recipe: Recipe, anatomy: Anatomy, layers: int) -> float:
    """Return the bytes that a token of a training step saves, with `layers` blocks."""
    in_blocks = layers * anatomy.block_per_token
    if recipe.train.activation_checkpointing:  # one block at a time is computed again
        in_blocks = layers * anatomy.input_per_token + anatomy.block_per_token
    return in_blocks + anatomy.outside_per_token


def flops_per_token(recipe: Recipe, parameters: Parameters, length: int) -> float:
    """Return the operations of a token's training step.

    They are 6 for each parameter that multiplies: 2 forward, 2 for the gradient of its input, 2 for
    its own, which a frozen one has not; and those of attention. With activation checkpointing the
    blocks have 2 more.
    """
    multiplying = parameters.in_blocks
    if recipe.task.learns_tokens:
        multiplying += parameters.vocabulary * parameters.width
    each = 6 if recipe.lora is None else 4
    attention = parameters.num_layers * parameters.width * length
    flops = each * multiplying + 12 * attention
    if recipe.train.activation_checkpointing:
        flops += 2 * parameters.in_blocks + 4 * attention
    return flops
