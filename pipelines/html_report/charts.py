"""Charts as numbers: what the templates draw as SVG. Coordinates are those of the view box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40  # margins
MAX_POINTS = 200  # of a line, each with a hover text
FAR_APART = 50  # how many times the lowest value the highest is, for a logarithmic axis
MAX_DOTS = 1000  # of a scatter plot


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Axis:
    """The scale of an axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(self.start + (self.end - self.start) * (value - low) / (high - low), 1)

    @property
    def ticks(self) -> list[Tick]:
        """Round values with their positions."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [10.0**power for power in powers]
            return [Tick(self(v), short(v, v, v)) for v in values if self.low <= v <= self.high]
        step = nice_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        largest = max(abs(self.low), abs(self.high))
        return [
            Tick(self(n * step), short(n * step, step, largest)) for n in range(first, last + 1)
        ]


@dataclass(frozen=True)
class Dot:
    """A point with its hover text."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Series:
    """A named line, or the dots of a scatter plot."""

    name: str
    dots: Sequence[Dot]

    @property
    def path(self) -> str:
        """The line through the points, as an SVG path."""
        return "M" + "L".join(f"{dot.x},{dot.y}" for dot in self.dots)


@dataclass(frozen=True)
class Chart:
    """A chart of lines or dots; `summary` is its text alternative."""

    title: str
    x_label: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    summary: str
    diagonal: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Bar:
    """A bar with its group on the axis and its hover text."""

    x: float
    y: float
    width: float
    height: float
    series: int
    title: str


@dataclass(frozen=True)
class BarChart:
    """Bars of one or several series next to each other; `mark` is a labelled vertical line."""

    title: str
    x_label: str
    names: Sequence[str]
    bars: Sequence[Bar]
    x_ticks: Sequence[Tick]
    y: Axis
    summary: str
    mark: Tick | None = None


def nice_step(span: float) -> float:
    """Return the distance of ticks, 1, 2 or 5 times a power of ten, for 3 to 6 ticks."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= 5)


def short(value: float, step: float, largest: float) -> str:
    """Return the label of a tick, such as 12,000, 0.25 or 2e-5, in the form of the largest one."""
    if value == 0:
        return "0"
    if 1e-3 <= largest < 1e7:
        return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def line_chart(
    title: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, log: bool = False
) -> Chart | None:
    """Return the chart of lines over the steps, or None where no line has a point.

    With `log` values that are far apart have a logarithmic axis.
    """
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    x = axis([step for line in lines.values() for step, _ in line], LEFT, WIDTH - RIGHT, tight=True)
    values = [value for line in lines.values() for _, value in line]
    y = axis(values, HEIGHT - BOTTOM, TOP)
    if log and min(values) > 0 and max(values) > FAR_APART * min(values):
        y = Axis(min(values) / 1.3, max(values) * 1.3, HEIGHT - BOTTOM, TOP, log=True)
    series = [
        Series(
            name,
            [
                Dot(x(step), y(value), f"{name or title}, step {step:,.0f}: {value:.5g}")
                for step, value in thinned(points, MAX_POINTS)
            ],
        )
        for name, points in lines.items()
    ]
    summary = " ".join(describe_line(name or title, points) for name, points in lines.items())
    return Chart(title, "optimizer step", x, y, series, summary)


def describe_line(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Return a sentence about a line: its ends and its extremes."""
    (first, start), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{name} is {start:.4g} at step {first:,.0f}."
    lowest, highest = (pick(points, key=lambda point: point[1]) for pick in (min, max))
    return (
        f"{name} goes from {start:.4g} at step {first:,.0f} to {end:.4g} at step {last:,.0f}; "
        f"its lowest value is {lowest[1]:.4g} (step {lowest[0]:,.0f}), its highest "
        f"{highest[1]:.4g} (step {highest[0]:,.0f})."
    )


def scatter_chart(title: str, points: Sequence[tuple[float, float, str]]) -> Chart:
    """Return predictions over targets; a point is (target, prediction, location)."""
    values = [value for target, prediction, _ in points for value in (target, prediction)]
    x, y = axis(values, LEFT, WIDTH - RIGHT), axis(values, HEIGHT - BOTTOM, TOP)
    dots = [
        Dot(x(target), y(prediction), f"{row}: target {target:.4g}, predicted {prediction:.4g}")
        for target, prediction, row in thinned(points, MAX_DOTS)
    ]
    distance = sum(abs(target - prediction) for target, prediction, _ in points) / len(points)
    summary = f"Predictions of {len(points):,} rows over their targets; the mean distance between "
    summary += f"the two is {distance:.4g}. On the dashed line they are equal."
    ends = (x(x.low), y(x.low), x(x.high), y(x.high))
    return Chart(title, "target", x, y, [Series("predicted", dots)], summary, diagonal=ends)


def axis(values: Iterable[float], start: float, end: float, *, tight: bool = False) -> Axis:
    """Return the axis that holds all values; unless `tight` with a little room on both sides."""
    values = list(values)
    low, high = min(values), max(values)
    room = 0.0 if tight else (high - low) * 0.05
    if low == high:
        room = abs(low) / 10 or 1.0
    return Axis(low - room, high + room, start, end)


def thinned(points: Sequence[Any], most: int) -> Sequence[Any]:
    """Return at most `most` points at equal distances, the last one among them."""
    if len(points) <= most:
        return points
    return [points[round(n * (len(points) - 1) / (most - 1))] for n in range(most)]


def bar_chart(
    title: str,
    x_label: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[int]],
    *,
    summary: str,
    mark: tuple[float, str] | None = None,
) -> BarChart:
    """Return bars of row counts, one of each series for each group.

    `mark` is a position in groups, such as 2.5 for the middle of the third one, with its label.
    """
    highest = max(1, *(count for counts in series.values() for count in counts))
    y = Axis(0, highest * 1.05, HEIGHT - BOTTOM, TOP)
    width = (WIDTH - LEFT - RIGHT) / len(groups)
    inner = width * (0.96 if len(series) == 1 else 0.8) / len(series)
    bars = [
        Bar(
            x=round(LEFT + group * width + (width - inner * len(series)) / 2 + number * inner, 1),
            y=y(count),
            width=round(inner, 1),
            height=round(y(0) - y(count), 1),
            series=number,
            title=f"{groups[group]}: {count:,} rows" + (f", {name}" if len(series) > 1 else ""),
        )
        for number, (name, counts) in enumerate(series.items())
        for group, count in enumerate(counts)
        if count
    ]
    every = max(1, math.ceil(len(groups) / 6))
    ticks = [
        Tick(round(LEFT + (group + 0.5) * width, 1), label)
        for group, label in enumerate(groups)
        if group % every == 0
    ]
    line = None if mark is None else Tick(round(LEFT + mark[0] * width, 1), mark[1])
    return BarChart(title, x_label, list(series), bars, ticks, y, summary, line)
