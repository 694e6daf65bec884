"""Attention in plain products, the fastest for short rows where oneDNN multiplies.

torch's fused attention multiplies tiles, each at oneDNN's cost of a call; its plain one makes a
mask of numbers in each layer, and looks after each for rows that attend to nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask

from pipelines.models.cpu import onednn_fp32_is_exact

PLAIN = "plain"
SHORT = 384
"""Rows up to this many tokens take it; torch's fused attention is faster, or smaller, on longer."""
NOT_OURS = ("position_bias", "softcap", "cache")
"""What some models hand over that `attend` knows nothing of."""


def use_plain_attention(model: PreTrainedModel, num_tokens: int) -> None:
    """Let `attend` stand in for torch's `scaled_dot_product_attention` on rows of `num_tokens`.

    What is saved does not name it. Models that attend in a way of their own keep it.
    """
    if (
        onednn_fp32_is_exact()
        and num_tokens <= SHORT
        and model.config._attn_implementation == "sdpa"
    ):
        AttentionInterface.register(PLAIN, attend)
        AttentionMaskInterface.register(PLAIN, eager_mask)
        model.set_attn_implementation(PLAIN)


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
    """Return what each query attends to, (batch, length, heads, width of a head).

    Queries, keys and values are (batch, heads, length, width of a head); the mask, to be added, is
    (batch, 1, queries, keys). Without one, a module may be causal all the same: torch's knows.
    """
    if attention_mask is None or any(others.get(name) is not None for name in NOT_OURS):
        options = {"scaling": scaling, "dropout": dropout} | others
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.mT)
    # In place, unless autocast makes the scores bfloat16, where the mask would become infinite
    same = scores.dtype == attention_mask.dtype
    scores = scores.add_(attention_mask) if same else scores + attention_mask
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    shares = functional.dropout(shares, dropout, training=dropout > 0)
    return torch.matmul(shares, value).transpose(1, 2).contiguous(), None
