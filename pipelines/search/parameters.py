"""The parameters of a search, and the values that a trial may give them.

Imports neither torch nor Optuna.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

Value = None | bool | int | float | str


@dataclass(frozen=True)
class Choices:
    """A parameter that takes one of several values."""

    path: str
    """Field of the recipe, as train.optim."""
    text: str
    """The values as they were typed."""
    values: tuple[Value, ...]

    @property
    def bounds(self) -> tuple[Value, ...]:
        """Values that are valid only if all values are: here all."""
        return self.values

    @property
    def grid(self) -> tuple[Value, ...] | None:
        """All values, or None if they cannot be listed."""
        return self.values

    def suggest(self, trial: optuna.Trial) -> Value:
        """Return the value of a trial, which its sampler draws at the first call."""
        return trial.suggest_categorical(self.path, self.values)

    def at(self, fraction: float) -> Value:
        """Return the value at a fraction, from 0 to below 1, of all."""
        return self.values[int(fraction * len(self.values))]

    def exact(self, drawn: Value) -> Value:
        """Return a drawn value without rounding errors: choices have none."""
        return drawn


@dataclass(frozen=True)
class Range:
    """A number between two bounds, which are included."""

    path: str
    """Field of the recipe, as train.learning_rate."""
    text: str
    """The range as it was typed."""
    low: Decimal
    high: Decimal
    """The largest value; with a step, a whole number of steps above `low`."""
    integer: bool
    log: bool = False
    step: Decimal | None = None

    @property
    def bounds(self) -> tuple[Value, ...]:
        """Values that are valid only if all values are: the lowest and the highest."""
        return self.number(self.low), self.number(self.high)

    @property
    def grid(self) -> tuple[Value, ...] | None:
        """All values, or None if there is no step between them."""
        if self.step is None:
            return None
        count = int((self.high - self.low) / self.step) + 1
        return tuple(self.number(self.low + index * self.step) for index in range(count))

    def number(self, value: Decimal) -> int | float:
        """Return a value as the field's type."""
        return int(value) if self.integer else float(value)

    def suggest(self, trial: optuna.Trial) -> Value:
        """Return the value of a trial, which its sampler draws at the first call."""
        if self.integer:
            return trial.suggest_int(
                self.path, int(self.low), int(self.high), step=int(self.step or 1), log=self.log
            )
        low, high = float(self.low), float(self.high)
        step = None if self.step is None else float(self.step)
        return self.exact(trial.suggest_float(self.path, low, high, step=step, log=self.log))

    def at(self, fraction: float) -> Value:
        """Return the value at a fraction, from 0 to below 1, of the way from `low` to `high`."""
        if self.grid is not None:
            return self.grid[int(fraction * len(self.grid))]
        low, high = float(self.low), float(self.high)
        if self.integer:
            high += 1  # each whole number has an interval of its own
        if self.log:
            value = math.exp(math.log(low) + fraction * (math.log(high) - math.log(low)))
        else:
            value = low + fraction * (high - low)
        bounded = min(max(value, float(self.low)), float(self.high))  # rounding may pass a bound
        return int(bounded) if self.integer else bounded

    def exact(self, drawn: Value) -> Value:
        """Return a drawn value without rounding errors: 0.3 for 0.1 + 2 * 0.1 in floats."""
        if self.integer or self.step is None:
            return drawn
        assert isinstance(drawn, float)
        steps = round((drawn - float(self.low)) / float(self.step))
        return float(self.low + steps * self.step)


Parameter = Choices | Range


def value_of(text: str, kinds: list[Any]) -> Value:
    """Return a typed value as the first of a field's types that can read it, else the text."""
    if text == "None" and type(None) in kinds:
        return None
    if text.lower() in ("true", "false") and bool in kinds:
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def choices_of(path: str, text: str, kinds: list[Any]) -> Choices:
    """Return the values of `a,b,c`. Raise ValueError, with the reason, for a wrong list."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"{text!r} has an empty choice. Type the values as 4,8,16.")
    values = tuple(value_of(part, kinds) for part in parts)
    duplicated = [
        part for part, value in zip(parts, values, strict=True) if values.count(value) > 1
    ]
    if duplicated:
        raise ValueError(f"{text!r} has {duplicated[0]} more than once.")
    return Choices(path, text, values)


def range_of(path: str, text: str, kinds: list[Any]) -> Range:
    """Return the range of `low:high`, `low:high:log` or `low:high:step`.

    Raise ValueError, with the reason, for a wrong one.
    """
    form = "Type a range as 1e-5:1e-3, 1e-5:1e-3:log or 0.1:0.5:0.1."
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(f"{text!r} is not a range. {form}")
    integer = float not in kinds
    low, high = (bound_of(part, text, integer=integer) for part in parts[:2])
    if low >= high:
        raise ValueError(f"the range {text} is empty: {parts[0]} is not below {parts[1]}.")
    if len(parts) == 2:
        return Range(path, text, low, high, integer)
    if parts[2] == "log":
        if low <= 0:
            reason = f"a logarithmic range begins above 0, and {text} at {parts[0]}."
            raise ValueError(f"{reason} Type another first bound, as 1e-6:{parts[1]}:log.")
        return Range(path, text, low, high, integer, log=True)
    step = bound_of(parts[2], text, integer=integer)
    if not 0 < step <= high - low:
        raise ValueError(f"the step of {text} is {parts[2]}; it must be above 0 and fit the range.")
    return Range(path, text, low, low + (high - low) // step * step, integer, step=step)


def bound_of(part: str, text: str, *, integer: bool) -> Decimal:
    """Return a bound or a step of a range. Raise ValueError for what is no such number."""
    kind = int if integer else float
    try:
        finite = math.isfinite(kind(part))
    except ValueError:
        finite = False
    if not finite:
        name = "a whole number" if integer else "a number"
        raise ValueError(f"{part!r} in the range {text} is not {name}.")
    return Decimal(part.strip().replace("_", ""))
