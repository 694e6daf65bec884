"""Write a GPT-2 language model as one GGUF file, and read it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from pipelines.errors import ExportError, Problem, RecipeError
from pipelines.exporting.gguf_vocabulary import Vocabulary, read_vocabulary
from pipelines.models.probes import num_embeddings

BLOCK = 32
"""Weights of a row that share a scale."""
ERRORS = {"F32": 0.0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2}
OTHER_ERROR = 0.15
"""Largest error of a weight, as a fraction of its tensor's largest weight, of 4 and 5 bits."""
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")
EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Origin:
    """What a file says of where its model is from. `base` is a repository on the Hub."""

    name: str
    license: str | None
    base: str | None


def write_gguf(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    file: Path,
    precision: str,
    origin: Origin,
) -> float:
    """Write a GPT-2 in float32 to a file; return the largest error of a weight that it holds.

    Vectors and positions stay in F32, and with 4 or 5 bits the embedding is Q8_0, since it is the
    head too. Raise RecipeError for what the format cannot hold, and ExportError where what was
    written is not the model.
    """
    import gguf

    check_model(model, precision)
    vocabulary = read_vocabulary(tokenizer, num_embeddings(model))
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT2])
    add_origin(writer, origin)
    add_sizes(writer, model.config, precision)
    add_tokenizer(writer, tokenizer, vocabulary)
    for name, values in tensors(model):
        kind = gguf.GGMLQuantizationType[precision_of(name, values, precision)]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return largest_error(model, file, precision)


def check_model(model: Any, precision: str) -> None:
    """Raise RecipeError for a model that llama.cpp's GPT-2 does not compute."""
    config = model.config
    if config.model_type != "gpt2":
        text = f"gguf is written for GPT-2, and this model is {config.model_type!r}. "
        raise RecipeError([Problem("to", f"{text}Use --to onnx or safetensors.")])
    wanted = {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "activation_function": ACTIVATIONS,
    }
    for name, values in wanted.items():
        if (found := getattr(config, name)) not in values:
            text = f"llama.cpp computes GPT-2 with {name} {values[0]}, and this model has {found}. "
            raise RecipeError([Problem("to", f"{text}Use --to onnx or safetensors.")])
    widths = {config.n_embd, config.n_inner or 4 * config.n_embd}
    odd = [width for width in widths if width % BLOCK]
    if precision not in ("F32", "F16", "BF16") and odd:
        text = f"{precision} packs {BLOCK} weights together, and this model is {odd[0]} wide. "
        raise RecipeError([Problem("quantize", f"{text}Use F32, F16 or BF16.")])


def add_origin(writer: Any, origin: Origin) -> None:
    """Add what is for readers: the name, the licence and the model that it was made from."""
    writer.add_type("model")
    writer.add_name(origin.name)
    writer.add_tags(["gpt2-recipes", "text-generation"])
    if origin.license:
        writer.add_license(origin.license)
    if origin.base:
        owner, _, name = origin.base.rpartition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, name)
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{origin.base}")
        if owner:
            writer.add_base_model_organization(0, owner)


def add_sizes(writer: Any, config: Any, precision: str) -> None:
    """Add the shape of the model and the type of its weights."""
    import gguf

    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    kind = "ALL_F32" if precision == "F32" else f"MOSTLY_{precision}"
    writer.add_file_type(gguf.LlamaFileType[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    """Add the vocabulary, the special tokens and the chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    eos = tokenizer.eos_token_id
    writer.add_eos_token_id(eos)
    writer.add_bos_token_id(eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
    writer.add_pad_token_id(eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def tensors(model: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the weights of a GPT-2 under llama.cpp's names, matrices as (outputs, inputs).

    A head that equals the embedding is left out, as llama.cpp then uses the embedding.
    """
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    transposed = {f"{n}.weight" for n, each in model.named_modules() if isinstance(each, Conv1D)}
    embedding = model.get_input_embeddings().weight
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and values.equal(embedding):
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ExportError(f"gguf has no name for the tensor {name!r} of this model.")
        yield written, np.ascontiguousarray((values.T if name in transposed else values).numpy())


def precision_of(name: str, values: np.ndarray[Any, Any], precision: str) -> str:
    """Return the type that a tensor is written in."""
    if values.ndim < 2 or name.startswith("position_embd"):
        return "F32"
    small = precision.startswith(("Q4", "Q5"))
    return "Q8_0" if small and name in (EMBEDDING, "output.weight") else precision


def largest_error(model: Any, file: Path, precision: str) -> float:
    """Read a file back; return the largest difference of a weight from the model's.

    Raise ExportError where it is more than the rounding of the type, or a weight is not finite.
    """
    import gguf

    held = {each.name: each for each in gguf.GGUFReader(file).tensors}
    largest = 0.0
    for name, values in tensors(model):
        read = gguf.quants.dequantize(held[name].data, held[name].tensor_type)
        error = float(np.abs(read.reshape(values.shape) - values).max())
        allowed = ERRORS.get(precision, OTHER_ERROR) * float(np.abs(values).max())
        if not error <= allowed:
            text = f"{file.name}: {name} is off by {error:.3g} when it is read back; rounding to "
            raise ExportError(f"{text}{precision} gives at most {allowed:.3g}.")
        largest = max(largest, error)
    return largest
