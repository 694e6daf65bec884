"""Causal attention without a mask, for rows that are padded on the right or packed into one.

No token reads those after it, so that padding on the right needs no mask. transformers makes one
all the same, (rows, 1, length, length), after it has waited for the device to tell whether there is
padding. With a mask torch has no flash attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipelines.log import LOG
from pipelines.models.probes import needs_no_mask, passes_keywords_to_body
from pipelines.models.segments import attend_to_segments, compute_dtype, flash_attention_works
from pipelines.models.upstream import attention_of

CAUSAL = "causal"
LONG = 512
"""Tokens of the shortest packed rows that take attention to segments.

The mask of shorter rows is small, and takes fewer launches. An estimate, not yet measured on a GPU.
"""


def use_causal_attention(model: PreTrainedModel) -> None:
    """Replace torch's attention by `attend`, which differs where a call leaves its mask out.

    What is saved does not name it. A model keeps its own attention if that is not torch's, if it
    reads a window of the past only, and if it computes something else without a mask.
    """
    name = attention_of(model)
    if name != "sdpa" or has_window(model.config):
        LOG.info(f"attention: {name}, with a mask: the model has a window, or its own attention")
        return
    AttentionInterface.register(CAUSAL, attend)
    AttentionMaskInterface.register(CAUSAL, sdpa_mask)
    model.set_attn_implementation(CAUSAL)
    takes_it = attention_of(model) == CAUSAL  # a few families cannot take another
    if takes_it and needs_no_mask(model.base_model, no_mask(model.device)):
        LOG.info("attention: causal, without a mask where rows are padded on the right")
    else:
        LOG.info(f"attention: {name}, with a mask, without which the model computes otherwise")
        model.set_attn_implementation(name)


def leave_masks_out(base: Any) -> RemovableHandle | None:
    """Let a model with `use_causal_attention` read batches without a mask, until the handle's end.

    Their rows must be padded on the right. Calls with a cache keep their masks: generation pads
    prompts on the left. Return None for a model with another attention, whose masks stay.
    """
    if attention_of(base) != CAUSAL:
        return None
    body = base.base_model
    handle: RemovableHandle = body.register_forward_pre_hook(_leave_mask_out, with_kwargs=True)
    return handle


@contextmanager
def reading_rows(base: Any) -> Iterator[None]:
    """Let a model with `use_causal_attention` read batches without a mask or a cache inside."""
    handle = leave_masks_out(base)
    if handle is None:
        yield
        return
    cached = base.config.use_cache
    base.config.use_cache = False
    try:
        yield
    finally:
        base.config.use_cache = cached
        handle.remove()


def takes_bounds(base: Any) -> bool:
    """Tell whether the attention of a model takes the bounds of segments."""
    return attention_of(base) == CAUSAL and passes_keywords_to_body(base)


def has_window(config: Any) -> bool:
    """Tell whether some layers of a model read a part of the tokens before each token only."""
    kinds = set(getattr(config, "layer_types", None) or ())
    sizes = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return not kinds <= {"full_attention"} or any(size is not None for size in sizes)


def no_mask(device: torch.device) -> torch.Tensor:
    """Return the mask of a call that leaves it out.

    It has four dimensions, as a complete one: transformers passes that on as it is. For None it
    would look for packed rows, and wait for the device.
    """
    return torch.empty((0, 0, 0, 0), device=device)


def _leave_mask_out(
    body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Replace the mask of a call without a cache."""
    cached = kwargs.get("use_cache")
    cached = getattr(body.config, "use_cache", True) if cached is None else cached
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if cached or kwargs.get("past_key_values") is not None or (mask is not None and mask.ndim != 2):
        return None
    packed = positions if mask is None else None
    if packed is None or takes_segments(body, packed, kwargs.get("cu_seq_lens_q")):
        mask = no_mask(body.device)
    else:
        mask = isolating_mask(packed)
    return args, kwargs | {"attention_mask": mask}


def takes_segments(body: Any, positions: torch.Tensor, bounds: torch.Tensor | None) -> bool:
    """Tell whether packed rows take attention to segments, and not a mask."""
    if bounds is None or positions.shape[1] < LONG:
        return False
    config = body.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return flash_attention_works(body.device, compute_dtype(body.device, body.dtype), width)


def isolating_mask(positions: torch.Tensor) -> torch.Tensor:
    """Return the (rows, 1, length, length) mask of packed rows: True where a token reads another.

    A segment begins where (rows, length) positions do not go on by one, as for transformers.
    """
    steps = torch.diff(positions, prepend=positions[:, :1] - 1)
    segments = (steps != 1).cumsum(1)
    return (segments[:, :, None] == segments[:, None, :]).tril()[:, None]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention's output, (rows, length, heads, width of a head).

    Queries, keys and values are (rows, heads, length, width of a head). With `no_mask` attention is
    causal, inside the segments that begin at `cu_seq_lens_q`, if there are any.
    """
    if attention_mask is not None and attention_mask.shape[-1] == 0:
        attention_mask = None
        if (bounds := others.get("cu_seq_lens_q")) is not None:
            groups = getattr(module, "num_key_value_groups", 1)
            by_head = (query, repeat_kv(key, groups), repeat_kv(value, groups))
            queries, keys, values = (each.transpose(1, 2).flatten(0, 1) for each in by_head)
            output = attend_to_segments(
                queries,
                keys,
                values,
                bounds,
                others["max_length_q"],
                scaling=scaling,
                dropout=dropout,
            )
            return output.view(query.transpose(1, 2).shape), None
    options: dict[str, Any] = {"scaling": scaling, "dropout": dropout} | others
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
