"""8-bit and 4-bit weights by bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
            options = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": quantization.bnb_4bit_use_double_quant,
                "bnb_4bit_quant_storage": storage,
                "bnb_4bit_compute_dtype": torch.float32,  # see `computing_in`
            }
    untyped: Any = BitsAndBytesConfig
    config: BitsAndBytesConfig = untyped(**options, llm_int8_skip_modules=HEADS)
    return config


@contextmanager
def computing_in(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let the quantised layers of a model compute in a type inside.

    4-bit layers multiply in it; 8-bit ones take inputs in it, hence give outputs and gradients in
    it. Outside they compute in the type of their inputs, as a loaded result does. bitsandbytes
    rounds biases for good; they are given back.
    """
    if not getattr(model, "is_quantized", False):
        yield
        return
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt  # seconds of imports

    def convert(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0].to(dtype),)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Linear4bit):
                stack.callback(setattr, module, "compute_dtype", module.compute_dtype)
                module.compute_dtype = dtype
            elif isinstance(module, Linear8bitLt):
                stack.callback(module.register_forward_pre_hook(convert).remove)
            else:
                continue
            if module.bias is not None:
                stack.callback(give_back, module, module.bias, module.bias.data)
        yield


def give_back(module: torch.nn.Module, bias: torch.nn.Parameter, values: torch.Tensor) -> None:
    """Give a layer's bias its values, unless the layer has another parameter by now."""
    if module.bias is bias:
        bias.data = values
