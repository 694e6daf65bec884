"""Send the metrics of a run to the experiment trackers of its recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.console import say
from pipelines.errors import EndedEarly, Preempted
from pipelines.hub.contents import make_portable
from pipelines.log import LOG
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import shortened
from pipelines.recipe.values import TrackerName
from pipelines.reporting.step_log import SUMMARY, numbers_of
from pipelines.training.checkpoints import step_of
from pipelines.training.identity import comparable
from pipelines.training.tracker_backends import TRACKERS, Ending, TrackedRun, Tracker
from pipelines.training.trainer import RecipeTrainer


@contextmanager
def tracked(recipe: Recipe, trainer: RecipeTrainer, checkpoint: Path | None) -> Iterator[None]:
    """Log the metrics of what is done inside to the recipe's trackers, and how it ends.

    Rank 0 does so. With a checkpoint, the run that it belongs to is continued. A tracker that fails
    gets no more metrics, with a message, and the run continues.
    """
    if not recipe.train.report_to or not PartialState().is_main_process:
        yield
        return
    trackers = Trackers()
    run = tracked_run(recipe, trainer.identity["run"], checkpoint)
    ending: Ending = "failed"
    try:
        for name in dict.fromkeys(recipe.train.report_to):
            trackers.begin(name, run)
        trainer.add_callback(trackers)
        yield
        ending = "finished"
    except (Preempted, EndedEarly):
        ending = "stopped"
        raise
    finally:
        trackers.close(ending)


class Trackers(TrainerCallback):
    """Logs what the Trainer logs to every open tracker."""

    def __init__(self) -> None:
        self.open: dict[TrackerName, Tracker] = {}

    def begin(self, name: TrackerName, run: TrackedRun) -> None:
        """Begin a run in a tracker, or continue it."""

        def begin() -> None:
            self.open[name] = TRACKERS[name](run)
            say(f"  {name}: {self.open[name].location}")

        self.attempt(name, begin)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and SUMMARY not in logs:
            metrics = {name: n for name, n in numbers_of(logs).items() if n is not None}
            self.log(metrics, state.global_step)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log the metrics of a step to every open tracker that has none of a later one."""
        for name, tracker in list(self.open.items()):
            logged = tracker.logged
            new = {metric: n for metric, n in metrics.items() if step > logged.get(metric, -1)}
            if new:
                self.attempt(name, tracker.log, new, step)

    def close(self, ending: Ending) -> None:
        """Close every open tracker."""
        for name, tracker in list(self.open.items()):
            self.attempt(name, tracker.close, ending)
        self.open.clear()

    def attempt(self, name: TrackerName, action: Callable[..., None], *arguments: Any) -> None:
        """Do something with a tracker; if it fails, say so and log nothing more to it."""
        try:
            action(*arguments)
        except Exception as error:
            self.open.pop(name, None)
            LOG.exception("%s failed.", name)
            first = next(iter(str(error).splitlines()), "")
            say(f"  {name} failed and gets no more metrics; the run continues.")
            say(f"    {shortened(f'{type(error).__name__}: {first}')}")


def tracked_run(recipe: Recipe, run: str, checkpoint: Path | None) -> TrackedRun:
    """Return what trackers are told of a run that is new, or resumes from a checkpoint.

    A seed of `repeat` and a trial of `search` have the recipe's name with that of their folder.
    """
    folder = recipe.folder.name
    return TrackedRun(
        id=run,
        name=recipe.name if folder == recipe.name else f"{recipe.name}-{folder}",
        group=recipe.name,
        folder=recipe.folder,
        config=dict(flat(comparable(make_portable(recipe)))),
        next_step=0 if checkpoint is None else step_of(checkpoint) + 1,
    )


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of every field."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from flat(item, f"{path}.{key}".lstrip("."))
