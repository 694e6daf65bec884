"""The engines that Accelerate trains with: which one is requested, and what each can train.

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import NF4, Int8
from pipelines.training.zero_config import zero_stage


@dataclass(frozen=True)
class Engine:
    """A way to train on the processes of a run."""

    name: str
    """As a run prints it."""
    config: str
    """The shipped Accelerate config that requests it."""
    shards_parameters: bool = False
    """Whether each process holds a part of every parameter, which is gathered to be used."""


WRAP_POLICIES = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
FULL, SHARDED = "FULL_STATE_DICT", "SHARDED_STATE_DICT"
ORDINARY = "ordinary"
"""The form of the checkpoints of one process, of DDP and of DeepSpeed."""
ONE_PROCESS = Engine("one process", "single_gpu")
DDP = Engine("DDP", "multi_gpu")
FSDP2 = Engine("FSDP2", "fsdp2", shards_parameters=True)
ZERO2 = Engine("DeepSpeed ZeRO-2", "deepspeed_zero2")
ZERO3 = Engine("DeepSpeed ZeRO-3", "deepspeed_zero3", shards_parameters=True)
ENGINES = (ONE_PROCESS, DDP, FSDP2, ZERO2, ZERO3)


@dataclass(frozen=True)
class Limit:
    """A choice of a recipe that only some engines can train."""

    field: str
    choice: str
    is_chosen: Callable[[Recipe], bool]
    engines: tuple[Engine, ...]
    """Those that can."""
    reason: str


LIMITS = (
    Limit(
        "quantization",
        "an 8-bit base",
        lambda recipe: isinstance(recipe.quantization, Int8),
        (ONE_PROCESS, DDP, ZERO2),
        "bitsandbytes keeps its 8-bit weights with statistics that cannot be sharded",
    ),
    Limit(
        "quantization",
        "a 4-bit base",
        lambda recipe: isinstance(recipe.quantization, NF4),
        (ONE_PROCESS, DDP, FSDP2, ZERO2),
        "its packed weights cannot be sharded with what dequantises them",
    ),
    Limit(
        "train.optim",
        "Muon",
        lambda recipe: recipe.train.optim == "muon",
        (ONE_PROCESS, DDP),
        "its update needs whole matrices, of which each process has a part",
    ),
    Limit(
        "train.optim",
        "adamw_bnb_8bit",
        lambda recipe: recipe.train.optim == "adamw_bnb_8bit",
        (ONE_PROCESS, DDP),
        "its state is of whole blocks of a parameter, of which each process has a part",
    ),
)
"""What goes together with which engine."""


def unfit(recipe: Recipe, engine: Engine) -> Iterator[Problem]:
    """Yield a problem for each choice of a recipe that an engine cannot train."""
    for limit in LIMITS:
        if limit.is_chosen(recipe) and engine not in limit.engines:
            others = " or ".join(each.config for each in limit.engines if each is not ONE_PROCESS)
            text = f"{engine.name} cannot train {limit.choice}: {limit.reason}. "
            yield Problem(limit.field, f"{text}Use --config-file {others}.")


def without_gpus(engine: Engine) -> Problem:
    """Return the problem of an engine on a machine without GPUs, where Accelerate replaces it."""
    text = f"{engine.name} was requested, and Accelerate trains by DDP on a CPU. "
    text += "Use --config_file accelerate_configs/cpu_2_processes.yaml."
    return Problem("accelerate launch", text)


def check_fit(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> None:
    """Raise RecipeError for a recipe that the requested engine cannot train."""
    engine = requested_engine(environment)
    problems = list(unfit(recipe, engine))
    by_fsdp = engine is FSDP2 and is_set(environment, "FSDP_ACTIVATION_CHECKPOINTING")
    if by_fsdp and recipe.train.activation_checkpointing:
        text = "the config's fsdp_activation_checkpointing does the same. Use one of the two."
        problems.append(Problem("train.activation_checkpointing", text))
    if problems:
        raise RecipeError(problems)


def requested_engine(environment: Mapping[str, str] = os.environ) -> Engine:
    """Return the engine that the launcher has requested of this process.

    Raise RecipeError for a kind of it that this project does not support.
    """
    if is_set(environment, "ACCELERATE_USE_DEEPSPEED"):
        return ZERO3 if zero_stage(environment) == 3 else ZERO2
    if is_set(environment, "ACCELERATE_USE_FSDP"):
        check_fsdp(environment)
        return FSDP2
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        return DDP
    return ONE_PROCESS


def checkpoint_format(environment: Mapping[str, str] = os.environ) -> str:
    """Return the form of the checkpoints that the requested engine writes, and alone reads."""
    engine = requested_engine(environment)
    if engine is FSDP2:
        return f"{engine.name} {environment.get('FSDP_STATE_DICT_TYPE', SHARDED)}"
    return ORDINARY


def is_set(environment: Mapping[str, str], name: str) -> bool:
    """Tell whether a variable has one of the values that Accelerate takes for true."""
    return environment.get(name, "").lower() in ("true", "1", "yes")


def check_fsdp(environment: Mapping[str, str]) -> None:
    """Raise RecipeError for an option of FSDP that would train wrongly, or not at all."""
    problems = []
    if environment.get("FSDP_VERSION", "1") != "2":
        problems.append(Problem("fsdp_version", "only FSDP2 is supported. Set fsdp_version: 2."))
    if is_set(environment, "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        text = "every process checks the weights that it loads. Set "
        text += "fsdp_cpu_ram_efficient_loading: false."
        problems.append(Problem("fsdp_cpu_ram_efficient_loading", text))
    state_dict = environment.get("FSDP_STATE_DICT_TYPE", SHARDED)
    if state_dict not in (FULL, SHARDED):
        text = f"{state_dict} is of one process alone. Use {SHARDED} or {FULL}."
        problems.append(Problem("fsdp_state_dict_type", text))
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", WRAP_POLICIES[0])
    if policy not in WRAP_POLICIES:
        text = f"{policy!r} is none of {', '.join(WRAP_POLICIES)}."
        problems.append(Problem("fsdp_auto_wrap_policy", text))
    if problems:
        raise RecipeError(problems)
