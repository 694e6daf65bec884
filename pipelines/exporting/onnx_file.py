"""Write a model as one ONNX graph with batches and lengths of any size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pipelines.errors import ExportError

OPSET = 20
"""The first with GELU as one operator."""
INPUTS = ("input_ids", "attention_mask")


class Graph(torch.nn.Module):
    """A model as a function of tensors alone.

    A head takes `input_ids` and `attention_mask`, both (batch, length), and gives its logits. A
    language model takes the keys and values of each layer too, (batch, heads, past, width), with a
    mask of (batch, past + length); it gives logits, (batch, length, tokens), and all keys and
    values. Its positions are counted by the mask, so that rows may be padded on either side.
    """

    def __init__(self, model: Any, *, writes: bool):
        super().__init__()
        self.model = model
        self.writes = writes

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        num_past = attention_mask.shape[1] - input_ids.shape[1]
        keys = torch.arange(attention_mask.shape[1])
        causal = keys[None, :] <= keys[num_past:, None]
        seen = causal[None, None] & attention_mask[:, None, None, :].bool()
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        if not self.writes:
            outputs = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False)
            return tuple(v for name, v in outputs.items() if name.endswith("logits"))
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions[:, num_past:],
            past_key_values=cache_of(past),
            use_cache=True,
        )
        return (outputs.logits, *tensors_of(outputs.past_key_values))


def cache_of(tensors: tuple[torch.Tensor, ...]) -> DynamicCache:
    """Return the cache of keys and values, layer by layer."""
    cache, untyped = DynamicCache(), cast(Any, DynamicLayer)
    for keys, values in zip(tensors[::2], tensors[1::2], strict=True):
        layer: Any = untyped()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def tensors_of(cache: DynamicCache) -> Iterator[torch.Tensor]:
    """Yield the keys and values of a cache, layer by layer."""
    layers: Any = cache.layers
    for layer in layers:
        yield layer.keys
        yield layer.values


def write_onnx(model: Any, file: Path, *, writes: bool) -> None:
    """Write a model in float32 on the CPU to a file; a language model, which `writes`, with cache.

    torch's exporter by tracing is used: it takes a second where the one by torch.export takes half
    a minute, and gives the axes names. The attention of `model` becomes the unfused one, which is
    made of operators that ONNX has.

    Raise ExportError for a family that cannot be traced, such as one that counts positions by the
    mask, which is that of attention here.
    """
    model.set_attn_implementation("eager")
    graph = Graph(model, writes=writes).eval()
    ids = torch.zeros(2, 3, dtype=torch.long)
    with torch.no_grad():
        given = model(input_ids=ids, use_cache=writes)
    past = tuple(tensors_of(given.past_key_values)) if writes else ()
    layers = range(len(past) // 2)
    inputs = [f"past_key_values.{i}.{part}" for i in layers for part in ("key", "value")]
    outputs = [f"present.{i}.{part}" for i in layers for part in ("key", "value")]
    heads = [name for name in given if name.endswith("logits")]
    axes = {"input_ids": {0: "batch", 1: "length"}}
    axes["attention_mask"] = {0: "batch", 1: "past + length" if writes else "length"}
    axes |= {name: {0: "batch", 2: "past"} for name in inputs}
    axes |= {name: {0: "batch", 2: "past + length"} for name in outputs}
    for name in heads:
        axes[name] = {0: "batch", 1: "length"} if given[name].shape[:2] == (2, 3) else {0: "batch"}
    mask = torch.ones(2, 6 if writes else 3, dtype=torch.long)
    try:
        with quiet_exporters():
            torch.onnx.export(
                graph,
                (ids, mask, *past),
                str(file),
                input_names=[*INPUTS, *inputs],
                output_names=[*heads, *outputs],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
                do_constant_folding=False,  # would hold the embedding again, as the head's matrix
            )
    except Exception as error:  # of the family's own code, and of torch's
        family = model.config.model_type
        raise ExportError(f"torch cannot write {family} as ONNX: {error}") from error


def write_int8(fp32: Path, file: Path) -> None:
    """Write the graph of a file with the matrices of its layers in 8 bits, and their inputs too.

    Inputs are rounded as they come, by the largest of a batch, and matrices by the largest of a
    column.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet_exporters():
        quantize_dynamic(
            fp32,
            file,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=folder_size(fp32.parent) > 1 << 30,
        )


def folder_size(folder: Path) -> int:
    """Return the bytes of the files in a folder. Of a graph above 2 GB, weights are in others."""
    return sum(each.stat().st_size for each in folder.iterdir() if each.is_file())


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence what the exporters say of every model: what they write is compared with it anyway."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)
