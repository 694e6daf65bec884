"""Remove what weighs least from a GPT-2: neurons, heads with channels, or single weights.

Structured pruning leaves an ordinary, smaller GPT-2, which its config describes. That has as many
neurons and heads in each layer, and heads as wide together as the residual stream, so that heads go
together with as many of its channels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipelines.errors import Problem, RecipeError


def check_prunable(config: Any, *, heads: float | None, neurons: float | None) -> None:
    """Raise RecipeError for another family, and for fractions that leave or remove nothing."""
    if config.model_type != "gpt2":
        text = f"only GPT-2 can be pruned by heads and neurons, and this is {config.model_type}."
        raise RecipeError([Problem("REPO", f"{text} --sparsity prunes any model.")])
    problems = []
    counts = {"prune_heads": (heads, config.n_head), "prune_neurons": (neurons, inner(config))}
    for name, (fraction, count) in counts.items():
        if fraction is not None and kept(count, fraction) in (0, count):
            what = name.removeprefix("prune_")
            text = f"{fraction:g} of {count} {what} a layer is {count - kept(count, fraction)}. "
            text += f"Give from {1 / count:.2g} to {1 - 1 / count:.2g}."
            problems.append(Problem(name, text))
    if problems:
        raise RecipeError(problems)


def inner(config: Any) -> int:
    """Return the neurons of a layer."""
    return int(config.n_inner or 4 * config.n_embd)


def kept(count: int, fraction: float) -> int:
    """Return how many of a number are kept where a fraction is removed."""
    return count - round(count * fraction)


@torch.no_grad()
def pruned(
    model: PreTrainedModel, *, heads: float | None = None, neurons: float | None = None
) -> PreTrainedModel:
    """Return a smaller GPT-2 without the fractions of heads and neurons whose weights are smallest.

    The weights that read and write a neuron, a head or a channel count together, each layer for
    itself; channels of the residual stream are the same in all layers. Raise RecipeError as
    `check_prunable` does.
    """
    config: Any = copy.deepcopy(model.config)
    check_prunable(config, heads=heads, neurons=neurons)
    width, size = config.n_embd, config.n_embd // config.n_head
    num_heads = kept(config.n_head, heads or 0.0)
    num_neurons = kept(inner(config), neurons or 0.0)
    channels = largest(channel_norms(model), num_heads * size)
    state = dict(model.state_dict())
    body: Any = model.base_model
    for number, block in enumerate(body.h):
        prefix = f"{model.base_model_prefix}.h.{number}."
        chosen = largest(head_norms(block, size), num_heads)
        columns = (chosen[:, None] * size + torch.arange(size)).flatten()
        qkv = torch.cat([columns + part * width for part in range(3)])
        neurons_kept = largest(neuron_norms(block), num_neurons)
        take(state, prefix + "attn.c_attn", outputs=qkv)
        take(state, prefix + "attn.c_proj", inputs=columns)
        take(state, prefix + "mlp.c_fc", outputs=neurons_kept)
        take(state, prefix + "mlp.c_proj", inputs=neurons_kept)
    config.n_head, config.n_embd, config.n_inner = num_heads, num_heads * size, num_neurons
    smaller: Any = type(model)(config)
    shapes = {name: each.shape for name, each in smaller.state_dict().items()}
    for name, tensor in state.items():
        state[name] = narrowed(tensor, channels, shapes[name], width)
    smaller.load_state_dict(state)
    if model.can_generate():
        smaller.generation_config = model.generation_config
    found: PreTrainedModel = smaller.to(model.device).eval()
    return found


def channel_norms(model: PreTrainedModel) -> torch.Tensor:
    """Return the norm of all weights that read or write each channel, (width,).

    What a norm's scale makes of a channel before a layer reads it is part of the weight.
    """
    body: Any = model.base_model
    total = body.wte.weight.square().sum(0) + body.wpe.weight.square().sum(0)
    for block in body.h:
        for norm, reading, writing in (
            (block.ln_1, block.attn.c_attn, block.attn.c_proj),
            (block.ln_2, block.mlp.c_fc, block.mlp.c_proj),
        ):
            total = total + (norm.weight[:, None] * reading.weight).square().sum(1)
            total = total + writing.weight.square().sum(0)
    norms: torch.Tensor = total.sqrt().cpu()
    return norms


def head_norms(block: Any, size: int) -> torch.Tensor:
    """Return the norm of the weights of each head, (heads,)."""
    reading, writing = block.attn.c_attn.weight, block.attn.c_proj.weight
    by_column = reading.square().sum(0).view(3, -1).sum(0) + writing.square().sum(1)
    norms: torch.Tensor = by_column.view(-1, size).sum(1).sqrt().cpu()
    return norms


def neuron_norms(block: Any) -> torch.Tensor:
    """Return the product of the norms of what each neuron reads and of what it writes."""
    reading = block.mlp.c_fc.weight.norm(dim=0)
    norms: torch.Tensor = (reading * block.mlp.c_proj.weight.norm(dim=1)).cpu()
    return norms


def largest(values: torch.Tensor, number: int) -> torch.Tensor:
    """Return the places of the largest values, in their order."""
    return values.topk(number).indices.sort().values


def take(
    state: dict[str, torch.Tensor],
    name: str,
    *,
    inputs: torch.Tensor | None = None,
    outputs: torch.Tensor | None = None,
) -> None:
    """Keep some inputs or outputs of a Conv1D, whose weight is (inputs, outputs)."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    if inputs is not None:
        weight = weight[inputs.to(weight.device)]
    if outputs is not None:
        weight, bias = weight[:, outputs.to(weight.device)], bias[outputs.to(weight.device)]
    state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias


def narrowed(
    tensor: torch.Tensor, channels: torch.Tensor, shape: torch.Size, width: int
) -> torch.Tensor:
    """Keep some channels in each dimension that is as wide as the residual stream, and must not be.

    Dimensions that are right already are of heads and neurons.
    """
    for dim, size in enumerate(shape):
        if tensor.shape[dim] != size:
            assert tensor.shape[dim] == width
            tensor = tensor.index_select(dim, channels.to(tensor.device))
    return tensor.contiguous()


@torch.no_grad()
def sparsify(model: PreTrainedModel, fraction: float) -> None:
    """Set the fraction of smallest weights of each matrix inside the blocks to zero."""
    for module in model.modules():
        if not isinstance(module, Conv1D | torch.nn.Linear) or module is head_of(model):
            continue
        number = round(module.weight.numel() * fraction)
        if number:
            threshold = module.weight.abs().flatten().kthvalue(number).values
            module.weight.masked_fill_(module.weight.abs() <= threshold, 0.0)


def head_of(model: PreTrainedModel) -> Any:
    """Return the layer of a model that is not inside of its body."""
    inside = set(model.base_model.modules())
    return next(
        (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m not in inside), None
    )
