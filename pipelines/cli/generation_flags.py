"""The options of generation as flags that may be left out."""

from __future__ import annotations

from dataclasses import make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import tyro

from pipelines.tasks.generation import Generation, GenerationOptions
from pipelines.terminal import stop


def generation_flags() -> Any:
    """Return the fields of Generation as flags that may be left out, with their texts.

    A boolean field is two flags, to turn it on or off.
    """
    flags: list[tuple[str, Any, Any]] = []
    for name, kind in get_type_hints(Generation).items():
        default = tyro.conf.arg(help_behavior_hint="(default: the recipe's)")
        if kind is bool:
            off = tyro.conf.arg(help=f"Turn --{name.replace('_', '-')} off.")
            flag = tyro.conf.FlagCreatePairsOff[bool]
            flags.append((name, Annotated[flag, default], False))
            flags.append((f"no_{name}", Annotated[flag, default, off], False))
        else:
            value = tyro.conf.arg(metavar=kind.__name__.upper())
            flags.append((name, Annotated[kind | None, default, value], None))
    # Derived from Generation, so that tyro finds the docstrings of its fields.
    return make_dataclass("GenerationFlags", flags, bases=(Generation,), frozen=True, kw_only=True)


if TYPE_CHECKING:
    GenerationFlags = Generation
else:
    GenerationFlags = generation_flags()
NO_GENERATION_FLAGS = GenerationFlags()


def typed_options(flags: Generation) -> GenerationOptions:
    """Return the options that were typed. Stop for a boolean that is turned both on and off."""
    typed: dict[str, Any] = {}
    for name, kind in get_type_hints(Generation).items():
        value = getattr(flags, name)
        if kind is bool:
            off = getattr(flags, f"no_{name}")
            flag = name.replace("_", "-")
            if value and off:
                stop([f"--{flag}: contradicts --no-{flag}; give one of them."], 2)
            value = value if value or off else None
        if value is not None:
            typed[name] = value
    return cast(GenerationOptions, typed)
