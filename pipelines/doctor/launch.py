"""What `gpt2-recipes train` really starts with an Accelerate config."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from pipelines.doctor.finding import Finding
from pipelines.errors import RecipeError
from pipelines.recipe_cli import LaunchFlags
from pipelines.train import Launcher, engine_for, validated
from pipelines.training.engines import ONE_PROCESS

NAME = "launch"


def launch(torch: ModuleType, config_file: Path | None) -> Finding:
    """Return the processes, device, precision and engine of a config, or why it cannot start.

    Without a config the one that `accelerate config` wrote counts, as for a run.
    """
    try:
        launcher = Launcher.of(LaunchFlags(config_file=config_file))
        if launcher.config_file is None:
            return without_config(torch)
        arguments = validated([*launcher.words, "recipe.py"])
        engine = engine_for(arguments)
    except RecipeError as error:
        return Finding(NAME, " ".join(each.message for each in error.problems), "problem")
    processes = 1 if engine is ONE_PROCESS else arguments.num_processes
    on_cpu = bool(arguments.cpu or arguments.use_cpu) or not torch.accelerator.is_available()
    device = "the CPU" if on_cpu else f"{processes} GPU{'s' * (processes > 1)}"
    precision = arguments.mixed_precision or "no"
    text = f"{launcher.config_file}: {count(processes)} on {device}, "
    text += f"{'fp32' if precision == 'no' else precision}"
    text += "" if engine is ONE_PROCESS else f", {engine.name}"
    available = torch.accelerator.device_count()
    if not on_cpu and processes > available:
        fix = f"Use --num-processes {available}; {available} can be seen."
        return Finding(NAME, text, "problem", fix)
    return Finding(NAME, text)


def without_config(torch: ModuleType) -> Finding:
    """Return what a run without any config starts."""
    number = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if number == 0:
        return Finding(NAME, "no Accelerate config: 1 process on the CPU, fp32")
    text = f"no Accelerate config: 1 process on 1 of {number} GPU{'s' * (number > 1)}, fp32"
    fix = "Use `gpt2-recipes run`, or --config-file single_gpu, which computes in bf16."
    return Finding(NAME, text, "caution", fix)


def count(processes: int) -> str:
    """Return a number of processes as text."""
    return f"{processes} process{'es' * (processes > 1)}"
