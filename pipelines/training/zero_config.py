"""What a config may say of DeepSpeed. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.schema import suggest

STAGES = (2, 3)
STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
OFFLOADS = ("offload_optimizer_device", "offload_param_device")
FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
PRECISION = "ACCELERATE_MIXED_PRECISION"
FIELDS = "ACCELERATE_CONFIG_DS_FIELDS"
OF_FILE = (
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_stage",
    "zero3_save_16bit_model",
    *OFFLOADS,
    "offload_optimizer_nvme_path",
    "offload_param_nvme_path",
)
"""What Accelerate takes from no config that names a file of DeepSpeed's own."""
AUTO = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
"""What the recipe decides; a file of DeepSpeed's own must leave it to it."""
ALLOWED = (*AUTO, "zero_optimization", "communication_data_type", "comms_logger")
"""Sections of a file of DeepSpeed's own."""
BUCKET = 50_000_000
"""Gradients that DeepSpeed reduces at once, unless its config says otherwise. On a GPU it keeps
memory for all of them; its own default of 500 million takes 2 GB."""
AUTOCAST: dict[str, Any] = {
    "bf16": {"enabled": False},
    "torch_autocast": {
        "enabled": True,
        "dtype": "bfloat16",
        "lower_precision_safe_modules": [],  # what processes send stays in fp32
    },
}
"""Bfloat16 as every other engine has it: autocast, with weights in fp32. DeepSpeed's own rounds the
weights, also those that an adapter leaves as they are."""


def zero_stage(environment: Mapping[str, str]) -> int:
    """Return the stage of ZeRO that the launcher has requested, 2 or 3.

    Raise RecipeError for another one, and for options that would train something else.
    """
    file = environment.get(FILE, "none")
    problems: list[Problem] = []
    if file == "none":
        stage = int(environment.get(STAGE, "2"))
        for name in OFFLOADS:
            device = environment.get(f"ACCELERATE_DEEPSPEED_{name.upper()}", "none")
            problems += offloads(name, device)
        clipping = environment.get("ACCELERATE_GRADIENT_CLIPPING", "auto")
        accumulation = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
        problems += decided("gradient_clipping", clipping)
        problems += decided("gradient_accumulation_steps", accumulation)
    else:
        values = read_file(Path(file))
        problems += list(problems_of_file(file, values))
        problems += named_twice(file, environment.get(FIELDS, "").split(","))
        if "communication_data_type" in values and environment.get(PRECISION) == "bf16":
            text = f"{file}: communication_data_type has no effect in bfloat16: DeepSpeed sends "
            problems.append(Problem("deepspeed_config_file", f"{text}fp32. Leave it out."))
        stage = values.get("zero_optimization", {}).get("stage", 0)
    if stage not in STAGES:
        text = f"{stage} is not supported. Use 2 or 3, or for DDP --config-file multi_gpu."
        problems.append(Problem("zero_stage", text))
    if environment.get(PRECISION) in ("fp16", "fp8"):
        text = f"{environment[PRECISION]} is not supported under DeepSpeed. "
        problems.append(Problem("mixed_precision", f"{text}Use bf16 or no."))
    if problems:
        raise RecipeError(problems)
    return int(stage)


def offloads(name: str, device: str) -> Iterator[Problem]:
    """Yield a problem for a device that optimizer or parameters are moved to."""
    if device != "none":
        text = f"{device} is not supported. Use none; ZeRO-3 on more GPUs needs less memory."
        yield Problem(name, text)


def decided(name: str, value: Any) -> Iterator[Problem]:
    """Yield a problem for a value that the recipe decides."""
    flags = {"gradient_clipping": "--train.max-grad-norm"}
    if value != "auto":
        flag = flags.get(name, "--train.global-batch-size")
        yield Problem(name, f"{value} is what the recipe decides. Use auto, and {flag}.")


def problems_of_file(file: str, values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each value of a file of DeepSpeed's own that would not be heeded."""
    for name in sorted(values.keys() - set(ALLOWED)):
        text = f"{file}: {name!r} is not known, or not supported; "
        yield Problem("deepspeed_config_file", f"{text}{suggest(name, list(ALLOWED))}")
    for name in AUTO:
        yield from decided(name, values.get(name))
    zero = values.get("zero_optimization", {})
    for name in ("offload_optimizer", "offload_param"):
        yield from offloads(f"{name}_device", (zero.get(name) or {}).get("device") or "none")


def named_twice(file: str, names: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each name in an Accelerate config that a file of DeepSpeed's decides."""
    for name in names:
        if name == "mixed_precision":
            text = f"Accelerate takes none from a config that names {file}. Leave it out of the "
            yield Problem(name, f"{text}config, and use accelerate launch --mixed_precision bf16.")
        elif name in OF_FILE:
            yield Problem(name, f"{file} decides it. Leave it out of the Accelerate config.")


def read_file(file: Path) -> dict[str, Any]:
    """Return the values of a file of DeepSpeed's own, or raise RecipeError."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        text = f"{file}: {error.strerror}."
        raise RecipeError([Problem("deepspeed_config_file", text)]) from None
    except ValueError as error:
        text = f"{file} is not JSON: {error}"
        raise RecipeError([Problem("deepspeed_config_file", text)]) from None
    if not isinstance(values, dict) or not isinstance(values.get("zero_optimization", {}), dict):
        text = f"{file} is not a config of DeepSpeed."
        raise RecipeError([Problem("deepspeed_config_file", text)])
    return values


def complete_config(config: dict[str, Any], *, num_trained: int, bf16: bool) -> None:
    """Add to a config of DeepSpeed what no launcher sets: bfloat16, and memory for gradients."""
    if bf16:
        config |= deepcopy(AUTOCAST)
    config["zero_optimization"].setdefault("reduce_bucket_size", min(num_trained, BUCKET))


def not_installed() -> Iterator[str]:
    """Yield a message if DeepSpeed is not installed."""
    if find_spec("deepspeed") is None:
        yield 'DeepSpeed is not installed: pip install "gpt2-recipes[deepspeed]".'
