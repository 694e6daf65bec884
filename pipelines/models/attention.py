"""The attention of a model, and the unfused one: the fastest for short rows with oneDNN.

torch's fused attention multiplies tiles, each at oneDNN's cost of a call; its unfused one converts
the mask in each layer, and then looks for rows that attend to nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask

from pipelines.models.causal_attention import use_causal_attention
from pipelines.models.upstream import attention_of
from pipelines.process import onednn_fp32_is_exact

UNFUSED = "unfused"
SHORT = 384
"""Tokens of the longest row that takes it; on longer ones torch's is faster, or smaller."""
UNSUPPORTED = ("position_bias", "softcap", "cache")
"""Arguments of some models that `attend` does not implement."""


def choose_attention(model: PreTrainedModel, num_tokens: int) -> None:
    """Choose the attention of a model that has torch's, for rows of `num_tokens`.

    | device | rows | attention |
    |---|---|---|
    | CPU with exact products by oneDNN | up to `SHORT` tokens | unfused, with a mask |
    | CUDA | any | fused; without a mask where a batch is read, see `leave_masks_out` |
    | other | any | torch's, with a mask |
    """
    device = PartialState().device.type
    if device == "cpu":
        use_unfused_attention(model, num_tokens)
    elif device == "cuda":
        use_causal_attention(model)


def use_unfused_attention(model: PreTrainedModel, num_tokens: int) -> None:
    """Replace torch's `scaled_dot_product_attention` by `attend` for rows of `num_tokens`.

    What is saved does not name it. Models with another attention keep it.
    """
    if onednn_fp32_is_exact() and num_tokens <= SHORT and attention_of(model) == "sdpa":
        AttentionInterface.register(UNFUSED, attend)
        AttentionMaskInterface.register(UNFUSED, eager_mask)
        model.set_attn_implementation(UNFUSED)


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
    """Return attention's output, (batch, length, heads, width of a head).

    Queries, keys and values are (batch, heads, length, width of a head); the additive mask is
    (batch, 1, queries, keys). Without a mask a module may still be causal: torch's attention
    handles that.
    """
    if attention_mask is None or any(others.get(name) is not None for name in UNSUPPORTED):
        options = {"scaling": scaling, "dropout": dropout} | others
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.mT)
    # In place, unless autocast makes the scores bfloat16, where the mask would become infinite
    same = scores.dtype == attention_mask.dtype
    scores = scores.add_(attention_mask) if same else scores + attention_mask
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    probabilities = functional.dropout(probabilities, dropout, training=dropout > 0)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None
