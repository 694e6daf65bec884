"""Plots of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot_training(log: list[dict[str, Any]], file: Path) -> None:
    """Draw training and evaluation loss over the steps as a PNG.

    `log` is the log history of a Trainer.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for key, name in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(row["step"], row[key]) for row in log if key in row]
        if points:
            # no line between two scores, before and after training: it would suggest a curve
            line = "" if len(points) < 3 else "-"
            marker = "." if len(points) < 50 else ""
            axes.plot(*zip(*points, strict=True), label=name, linestyle=line, marker=marker)
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
