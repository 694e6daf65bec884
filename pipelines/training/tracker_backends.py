"""The experiment trackers, each by its own public API: begin or continue a run, log, close.

A tracker continues the run that it has by the same id. None gets more than the metrics and the
recipe: no paths, no environment, no console, no code.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from pipelines.recipe.values import TrackerName
from pipelines.training.tracker_upstream import without_account

PROJECT = "gpt2-recipes"
MLFLOW_FOLDER = Path("runs/mlflow")
RUN_TAG = "gpt2_recipes.run"
MOST_PARAMS, MOST_CHARACTERS = 100, 500  # of a request to MLflow, and of a parameter's value
PATIENCE = 30  # seconds for a server that does not answer, when a run begins and when it ends
Ending = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    `id` is the same when the run resumes, and `next_step` the first step that is still to be
    logged. `config` is flat.
    """

    id: str
    name: str
    group: str
    folder: Path
    config: dict[str, Any]
    next_step: int


class Tracker(ABC):
    """A run in a tracker, open for metrics.

    `location` is where to look at it. `logged` has the last step of each metric that is not to be
    logged again: a run that was killed makes the steps since its checkpoint again.
    """

    def __init__(self) -> None:
        self.location = ""
        self.logged: dict[str, int] = {}

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step."""

    @abstractmethod
    def close(self, ending: Ending) -> None:
        """Write what is left and record how the run ended."""


class TensorBoard(Tracker):
    """Event files in the run's folder; a run that resumes takes back the steps that come again."""

    def __init__(self, run: TrackedRun):
        super().__init__()
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        self.location = str(folder)
        self.writer = SummaryWriter(str(folder), purge_step=run.next_step)
        if run.next_step == 0:
            recipe = json.dumps(run.config, indent=2).replace("\n", "\n    ")
            self.writer.add_text("recipe", f"    {recipe}")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, ending: Ending) -> None:
        self.writer.close()


class Trackio(Tracker):
    """A run in Trackio's store on this machine; in a Space or on a server if the user names one."""

    def __init__(self, run: TrackedRun):
        super().__init__()
        import trackio

        space = os.environ.get("TRACKIO_SPACE_ID")
        remote = space or os.environ.get("TRACKIO_SERVER_URL")
        self.location = f"project {PROJECT}" + (f" in the Space {space}" if space else "")
        with redirect_stdout(io.StringIO()), nullcontext() if remote else without_account():
            self.trackio: Any = trackio
            self.run = trackio.init(
                project=PROJECT,
                name=f"{run.name}-{run.id[:8]}",  # the name alone tells it what to continue
                group=run.group,
                config=run.config,
                resume="allow",
                private=True,
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self.logged = {} if remote else self.steps_here()

    def steps_here(self) -> dict[str, int]:
        """Return the last step of each metric of the run in the store on this machine."""
        from trackio.sqlite_storage import SQLiteStorage

        rows = SQLiteStorage.get_logs(PROJECT, self.run.name, run_id=self.run.id)
        return last_steps((row["step"], row) for row in rows)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self, ending: Ending) -> None:
        with redirect_stdout(io.StringIO()):
            self.trackio.finish()


class WandB(Tracker):
    """A run in Weights & Biases, or in the run's folder with WANDB_MODE=offline.

    Weights & Biases itself takes no step before the last one.
    """

    def __init__(self, run: TrackedRun):
        super().__init__()
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            group=run.group,
            config=run.config,
            resume="allow" if run.next_step else None,
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,  # a remote's address may hold a password
                x_disable_meta=True,  # host, user, paths, command line
                silent=True,
                init_timeout=PATIENCE,
                finish_timeout=PATIENCE,
            ),
        )
        self.location = str(Path(self.run.dir).parent if self.run.offline else self.run.url)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self, ending: Ending) -> None:
        if ending == "stopped":
            self.run.mark_preempting()
        self.run.finish(exit_code={"finished": 0, "failed": 1, "stopped": 75}[ending])


class MLflow(Tracker):
    """A run in an MLflow server, or in a database on this machine."""

    def __init__(self, run: TrackedRun):
        super().__init__()
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE))
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self.location = f"experiment {name}"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri:
            self.open(uri, name, None)
        else:
            folder = MLFLOW_FOLDER.resolve()
            folder.mkdir(parents=True, exist_ok=True)
            self.location += f" in {MLFLOW_FOLDER / 'mlflow.db'}"
            uri = f"sqlite:///{folder / 'mlflow.db'}"
            with FileLock(folder / ".lock"):  # several runs may be the first at once
                self.open(uri, name, f"file://{folder / 'artifacts'}")
        self.run_id = self.begin(run)

    def open(self, uri: str, name: str, artifacts: str | None) -> None:
        """Connect to a store, and make the experiment if it has none of this name."""
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            self.experiment = self.client.create_experiment(name, artifact_location=artifacts)
        else:
            self.experiment = experiment.experiment_id

    def begin(self, run: TrackedRun) -> str:
        """Return the id of the run of this tag, which is new if there is none."""
        from mlflow.entities import Param

        found = self.client.search_runs([self.experiment], f"tags.`{RUN_TAG}` = '{run.id}'")
        if found:
            run_id = str(found[0].info.run_id)
            self.client.update_run(run_id, status="RUNNING")
            for metric in found[0].data.metrics:
                history = self.client.get_metric_history(run_id, metric)
                self.logged[metric] = max(each.step for each in history)
            return run_id
        tags = {RUN_TAG: run.id, "gpt2_recipes.group": run.group}
        made = self.client.create_run(self.experiment, run_name=run.name, tags=tags)
        params = [Param(key, str(value)[:MOST_CHARACTERS]) for key, value in run.config.items()]
        for start in range(0, len(params), MOST_PARAMS):
            part = params[start : start + MOST_PARAMS]
            self.client.log_batch(made.info.run_id, params=part)
        return str(made.info.run_id)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in metrics.items()}
        self.client.log_batch(
            self.run_id, metrics=[Metric(name, value, now, step) for name, value in named.items()]
        )

    def close(self, ending: Ending) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[ending]
        self.client.set_terminated(self.run_id, status)


def last_steps(rows: Iterable[tuple[int, Iterable[str]]]) -> dict[str, int]:
    """Return the last step of each metric from steps and the names of their metrics."""
    steps: dict[str, int] = {}
    for step, names in rows:
        steps |= {name: max(step, steps.get(name, step)) for name in names}
    return steps


TRACKERS: dict[TrackerName, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
    "mlflow": MLflow,
}
