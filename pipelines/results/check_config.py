"""Check that no configuration of a result makes the libraries load something else."""

from __future__ import annotations

from typing import Any

from pipelines.results.sidecar import file_error

JSON_BYTES = 1 << 24
FETCHING = (  # fields by which transformers loads other code, kernels, files or formats of weights
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_experts_implementation_internal",
    "attn_implementation",
    "auto_map",
    "compression_config",
    "custom_generate",
    "custom_pipelines",
    "experts_implementation",
    "fast_tokenizer_files",
    "fusion_config",
    "gguf_file",
    "kernel_config",
    "quantization_config",
    "tokenizer_file",
    "transformers_weights",
    "use_kernels",
    "vocab_file",
)


def check_stored_bits(config: dict[str, Any], file: str) -> int | None:
    """Return the bits in which a result's weights are stored, 8 or 4, or None.

    Raise RecipeError for another way to store them than bitsandbytes' of this project.
    """
    given = config.get("quantization_config")
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("quant_method") != "bitsandbytes":
        raise file_error(file, "quantization_config is not bitsandbytes'.")
    eight, four = given.get("load_in_8bit") is True, given.get("load_in_4bit") is True
    if eight == four:
        raise file_error(file, "quantization_config stores weights neither in 8 nor in 4 bits.")
    check_fetches_nothing(given, file)
    return 8 if eight else 4


def check_fetches_nothing(config: Any, file: str, but: tuple[str, ...] = ()) -> None:
    """Raise RecipeError for a field, at any depth, that makes the libraries load something else.

    `but` names fields that are allowed.
    """
    forbidden = [name for name in FETCHING if name not in but]
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if names := [name for name in forbidden if value.get(name) is not None]:
                raise file_error(file, f"{names[0]} is not allowed in a result. Remove it.")
            waiting += [each for each in value.values() if isinstance(each, dict | list)]
        elif isinstance(value, list):
            waiting += [each for each in value if isinstance(each, dict | list)]
