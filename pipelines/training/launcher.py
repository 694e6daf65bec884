"""What `accelerate launch` requests of a run, and whether this machine can do it.

Accelerate passes on to a process neither the number of processes nor, with several of them,
`use_cpu`, and on a machine without a GPU it trains on the CPU silently. The launcher's own
command line and its config file still have the request. Imports no torch by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipelines.errors import Problem, RecipeError
from pipelines.training.zero_config import not_installed

VISIBLE = "CUDA_VISIBLE_DEVICES"
SECTIONS = {"fsdp_config": "fsdp_", "deepspeed_config": "", "dynamo_config": "dynamo_"}
"""Sections of a config, and what precedes their options in the launcher's flags."""
LAUNCHERS = ("accelerate.commands.launch", "accelerate/commands/launch.py", "accelerate-launch")
PARENTS = ("accelerate.commands.accelerate_cli", "accelerate/commands/accelerate_cli.py")
UNSUPPORTED = {
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "a parallelism config",
    "XLA": "TPUs",
    "TPU": "TPUs",
}
"""Engines that Accelerate knows and this project does not support, by the name in a config."""


@dataclass(frozen=True)
class LaunchRequest:
    """What is requested; `gpu` and `unsupported` name the flag or the file that does so."""

    num_processes: int | None = None
    use_cpu: bool = False
    gpu: str | None = None
    unsupported: tuple[str, str] | None = None
    deepspeed: bool = False
    unknown: tuple[str, ...] = ()
    """What is wrong with names in the config's sections, which Accelerate ignores."""
    mixed_precision: str | None = None


def default_config() -> Path | None:
    """Return the file that `accelerate config` writes, if it is there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    home = Path(os.environ.get("HF_HOME", cache)).expanduser()
    file = home / "accelerate" / "default_config.yaml"
    return file if file.is_file() else None


def read_config(file: Path | None) -> dict[str, Any]:
    """Return the values of an Accelerate config, in YAML or JSON, or raise RecipeError."""
    if file is None:
        return {}
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError([Problem("config_file", f"{file}: {error.strerror}.")]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError([Problem("config_file", f"{file} is not YAML: {error}")]) from None
    if not isinstance(values, dict):
        raise RecipeError([Problem("config_file", f"{file} is not an Accelerate config.")])
    return values


def count_gpus() -> int:
    """Return the number of GPUs that a run can use."""
    listed = os.environ.get(VISIBLE)
    if listed is not None and listed.strip() in ("", "-1"):
        return 0
    if shutil.which("nvidia-smi"):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
        count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
        return count if listed is None else min(count, len(listed.split(",")))
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def launcher_arguments(command: list[str]) -> list[str] | None:
    """Return the arguments of `accelerate launch` in a process's command line, or None."""
    for i, word in enumerate(command):
        if word.endswith(LAUNCHERS):
            return command[i + 1 :]
        parent = Path(word).name == "accelerate" or word.endswith(PARENTS)
        if parent and command[i + 1 : i + 2] == ["launch"]:
            return command[i + 2 :]
    return None


def launcher_request() -> LaunchRequest:
    """Return the request to the nearest launcher among the parents of this process."""
    try:
        for process in psutil.Process().parents():
            arguments = launcher_arguments(process.cmdline())
            if arguments is not None:
                return read_request(arguments)
    except psutil.Error:  # a parent that has ended, or that belongs to somebody else
        pass
    return read_request(None)


def read_request(arguments: list[str] | None) -> LaunchRequest:
    """Return what the environment and the arguments of `accelerate launch`, if any, ask for."""
    from accelerate.commands.launch import launch_command_parser

    flags = vars(launch_command_parser().parse_known_args(arguments or ["no launcher"])[0])
    file = Path(flags["config_file"]) if flags["config_file"] else None
    if file is None and arguments and not flags["cpu"]:
        file = default_config()
    config = read_config(file)
    kind = str(config.get("distributed_type", "NO")).upper()
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    use_cpu = bool(flags["cpu"] or config.get("use_cpu") or on_cpu)
    several = kind.startswith("MULTI_") and kind != "MULTI_CPU"
    world_size = os.environ.get("WORLD_SIZE")  # as torchrun sets it
    return LaunchRequest(
        num_processes=flags["num_processes"]
        or config.get("num_processes")
        or (int(world_size) if world_size else None),
        use_cpu=use_cpu,
        gpu=None if use_cpu else gpu_request(flags, config, file, several),
        unsupported=unsupported_request(flags, config, file, kind),
        deepspeed=flags["use_deepspeed"] or kind == "DEEPSPEED",
        unknown=tuple(unknown_names(flags, config, file)),
        mixed_precision=flags["mixed_precision"] or config.get("mixed_precision"),
    )


def unknown_names(
    flags: dict[str, Any], config: dict[str, Any], file: Path | None
) -> Iterator[str]:
    """Yield a message for each name in a section of an engine that is no flag of the launcher."""
    for section, prefix in SECTIONS.items():
        values = config.get(section) or {}
        for name in values if isinstance(values, dict) else ():
            flag = name if str(name).startswith(prefix) else f"{prefix}{name}"
            if flag not in flags:
                near = get_close_matches(flag, flags, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                yield f"{file}: {section} has no option {name}.{hint}"


def gpu_request(
    flags: dict[str, Any], config: dict[str, Any], file: Path | None, several: bool
) -> str | None:
    """Return the flag or the file that asks for a GPU, if any does.

    A config for one process that does not set `use_cpu` leaves the choice to Accelerate.
    """
    if flags["multi_gpu"]:
        return "--multi_gpu"
    if flags["gpu_ids"] not in (None, "all"):
        return f"--gpu_ids {flags['gpu_ids']}"
    if several or config.get("use_cpu") is False or config.get("gpu_ids") not in (None, "", "all"):
        return str(file)
    return None


def unsupported_request(
    flags: dict[str, Any], config: dict[str, Any], file: Path | None, kind: str
) -> tuple[str, str] | None:
    """Return what asks for an engine that is not supported, and that engine's name."""
    for name in ("megatron_lm", "parallelism_config"):
        if flags[f"use_{name}"]:
            return f"--use_{name}", UNSUPPORTED[name.upper()]
    if flags["tpu"]:
        return "--tpu", UNSUPPORTED["TPU"]
    if kind in UNSUPPORTED:
        return str(file), UNSUPPORTED[kind]
    if config.get("parallelism_config"):
        return str(file), UNSUPPORTED["PARALLELISM_CONFIG"]
    if config.get("compute_environment") == "AMAZON_SAGEMAKER":
        return str(file), "SageMaker"
    for name, engine in UNSUPPORTED.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1", "yes"):
            return f"ACCELERATE_USE_{name}", engine
    return None


def check_request(request: LaunchRequest) -> None:
    """Raise RecipeError for what this project or this machine cannot do."""
    import torch

    problems = []
    if request.unsupported is not None:
        source, engine = request.unsupported
        text = f"{source} asks for {engine}, which this project does not support. Use "
        problems.append(f"{text}accelerate_configs/multi_gpu.yaml, which runs DDP.")
    problems += request.unknown
    if request.deepspeed:
        problems += not_installed()
    available = torch.accelerator.is_available()
    if request.gpu is not None and not available:
        problems.append(
            f"{request.gpu} asks for a GPU, and torch {torch.__version__} finds none on this "
            "machine. On a CPU use --config_file accelerate_configs/cpu.yaml, or for two processes "
            "accelerate_configs/cpu_2_processes.yaml; `gpt2-recipes run` chooses one itself."
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or request.mixed_precision
    if precision in ("fp16", "fp8") and (request.use_cpu or not available):
        problems.append(f"mixed_precision {precision} needs a GPU. On a CPU use no, or bf16.")
    if problems:
        raise RecipeError([Problem("accelerate launch", text) for text in problems])
