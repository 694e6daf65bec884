"""8-bit and 4-bit weights by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig

from pipelines.recipe.values import NF4, Int8

HEADS = ["lm_head", "embed_out", "output_projection", "cls", "score", "qa_outputs", "classifier"]
"""Kept in full precision."""


def quantization_config(
    quantization: Int8 | NF4 | None, storage: torch.dtype = torch.uint8
) -> BitsAndBytesConfig | None:
    """Translate to bitsandbytes' terms; heads stay in full precision.

    4-bit weights are packed into tensors of the type `storage`.
    """
    match quantization:
        case None:
            return None
        case Int8():
            options: dict[str, Any] = {
                "load_in_8bit": True,
                "llm_int8_threshold": quantization.llm_int8_threshold,
            }
        case NF4():
            cuda = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            options = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": quantization.bnb_4bit_use_double_quant,
                "bnb_4bit_quant_storage": storage,
                "bnb_4bit_compute_dtype": torch.bfloat16 if cuda else torch.float32,
            }
    untyped: Any = BitsAndBytesConfig
    config: BitsAndBytesConfig = untyped(**options, llm_int8_skip_modules=HEADS)
    return config
