"""Private names of accelerate's launcher, held by tests/training/test_training_upstream.py.

Imports no torch by itself.
"""

from __future__ import annotations

from typing import Any


def arguments_with_config(words: list[str]) -> Any:
    """Return the arguments of `accelerate launch`, with the values of its config filled in.

    Raise ValueError for a combination that it refuses. The public `launch_command` does the same
    and then starts the processes, and does not return whether there are several.
    """
    from accelerate.commands import launch

    arguments = launch.launch_command_parser().parse_args(words)
    arguments, defaults, has_precision = launch._validate_launch_command(arguments)
    fields = list(defaults.deepspeed_config) if defaults else []
    fields += ["mixed_precision"] if has_precision else []
    arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
    return arguments
