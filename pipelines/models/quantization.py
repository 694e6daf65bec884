"""8-bit and 4-bit weights by bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, modeling_utils

from pipelines.recipe.values import NF4, Int8

HEADS = ["lm_head", "embed_out", "output_projection", "cls", "score", "qa_outputs", "classifier"]
"""Kept in full precision."""


@contextmanager
def tensors_read_singly() -> Iterator[None]:
    """Read each tensor of a checkpoint when it is due.

    transformers maps the file, all of which is then resident beside the quantised weights. It knows
    the other way of safetensors too, but takes it only on other systems.
    """
    module: Any = modeling_utils
    mapped = module.safe_open

    def read(file: str, **options: Any) -> Any:
        return mapped(file, **options | {"backend": "pread"})

    module.safe_open = read
    try:
        yield
    finally:
        module.safe_open = mapped


def keep_4bit_layout(base: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with bfloat16 units.

    It does so in place at the first evaluation: the scales are rounded to bfloat16 and training
    then goes on with other weights; widths that are no multiple of 64 raise in a reshape.
    """
    from bitsandbytes.nn import Linear4bit

    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def quantization_config(quantization: Int8 | NF4 | None) -> BitsAndBytesConfig | None:
    """Translate to bitsandbytes' terms; heads stay in full precision."""
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
                "bnb_4bit_compute_dtype": torch.bfloat16 if cuda else torch.float32,
            }
    return BitsAndBytesConfig(**options, llm_int8_skip_modules=HEADS)
