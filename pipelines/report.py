"""What a run says on the terminal, once, from rank 0."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from pipelines.cautions import NUM_NAMED, count_labels, printable
from pipelines.data import Splits, Stream
from pipelines.log import LOG, scrubbed
from pipelines.recipe import Recipe
from pipelines.tasks import Task
from pipelines.tasks.base import Examples, Features


class RunConsole(Console):
    """A console whose lines go to run.log too, and that shows no secrets.

    What the terminal cannot show is escaped.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        if not self.quiet:
            LOG.info(" ".join(map(str, objects)))
        shown = (self.printable(each) if isinstance(each, str) else each for each in objects)
        super().print(*shown, **options)

    def printable(self, text: str) -> str:
        """Return a text without secrets, in characters that the terminal has."""
        return scrubbed(text).encode(self.encoding, "backslashreplace").decode(self.encoding)


def console() -> Console:
    """Return a console that is silent on all ranks but the first."""
    return RunConsole(quiet=not PartialState().is_main_process, soft_wrap=True, highlight=False)


class StepLog(TrainerCallback):
    """Say loss, gradient norm and learning rate of a step, and the metric of an evaluation."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        step = f"  step {state.global_step:,} of {state.max_steps:,}: "
        if "grad_norm" in logs:
            line = f"loss {logs['loss']:.4f}, gradient norm {logs['grad_norm']:.3g}, "
            console().print(f"{step}{line}learning rate {logs['learning_rate']:.3g}", markup=False)
        elif "eval_primary" in logs and 0 < state.global_step < state.max_steps:
            name = logs["eval_primary"]
            console().print(f"{step}{name} {logs[f'eval_{name}']:.4f}", markup=False)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence what the libraries say of every model inside: false alarms and progress bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    bars_of_datasets = not datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if bars_of_datasets:
        datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for start in (
                "fan_in_fan_out is set to False but",
                "`is_gradient_checkpointing` is deprecated",
                "`label_smoothing_factor` is deprecated",
            ):
                warnings.filterwarnings("ignore", message=start)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if bars_of_datasets:
            datasets.enable_progress_bars()


def print_report(
    recipe: Recipe,
    world_size: int,
    splits: Splits,
    train: Features,
    held_out: Features,
    cautions: Iterable[str],
) -> None:
    """Print what runs where, the rows and labels of each split, and what encoding them cost."""
    state = PartialState()
    out = console()
    out.print(f"{recipe.name}: {world_size} process(es) on {state.device.type}", markup=False)
    out.print(split_line(recipe.task, "train", splits.train, train), markup=False)
    out.print(split_line(recipe.task, "eval", splits.held_out, held_out), markup=False)
    for text in cautions:
        out.print(f"  {text}", style="yellow", markup=False)


def split_line(task: Task, name: str, examples: Examples, features: Features) -> str:
    """Return the rows of a split, of how many, what encoding them cost, and their labels."""
    parts = [f"{value:,} {key.replace('_', ' ')}" for key, value in features.report.items()]
    if isinstance(examples.rows, Stream):
        most = task.dataset.max_train_rows
        parts = ["streamed" if most is None else f"streamed, the first {most:,} rows"]
    elif examples.total is not None:
        num_rows = len(list(examples.rows))
        parts[0] = f"{num_rows:,} of {examples.total:,} rows (max_{name}_rows)"
    elif name == "eval" and task.dataset.streaming:
        parts.append("the first of the stream")
    line = f"  {name}: {', '.join(parts)}"
    counts = count_labels(task, examples).most_common()
    if counts:
        shown = [f"{printable(label)} {count:,}" for label, count in counts[:NUM_NAMED]]
        more = [f"and {len(counts) - NUM_NAMED} more"] if len(counts) > NUM_NAMED else []
        line += f"; labels: {', '.join(shown + more)}"
    return line


def plot_training(log: list[dict[str, Any]], file: Path) -> None:
    """Draw the loss over the steps, of training and of the evaluations in between, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for key, name in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(row["step"], row[key]) for row in log if key in row]
        if points:
            # a line between the scores before and after training would claim what lies between
            line = "" if len(points) < 3 else "-"
            marker = "." if len(points) < 50 else ""
            axes.plot(*zip(*points, strict=True), label=name, linestyle=line, marker=marker)
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


def print_score(name: str, metrics: dict[str, Any]) -> None:
    """Say the primary metric with its interval, rows and baseline."""
    primary = metrics["primary"]
    low, high = metrics["confidence_interval"]
    line = f"{name}: {primary} {metrics[primary]:.4f} (95 % {low:.4f} to {high:.4f}), "
    line += f"{metrics['rows']:,} rows"
    if "rows_skipped" in metrics:
        line += f" without {metrics['rows_skipped']:,} that cannot be used"
    for baseline, value in metrics.get("baseline", {}).items():
        line += f"; {baseline} {value:.4f}"
    console().print(line, markup=False)
