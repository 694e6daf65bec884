"""What a tracker needs before a run can log to it. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.values import TrackerName

SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""Environment variables that turn off what the trackers send to their makers."""


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise RecipeError for trackers that are not installed, or that lack a login.

    Turns off telemetry first: the trackers read these switches when they are imported.
    """
    for variable, value in SWITCHES.items():
        os.environ.setdefault(variable, value)
    if problems := [Problem("train.report_to", text) for text in missing(names)]:
        raise RecipeError(problems)


def missing(names: Sequence[TrackerName]) -> Iterator[str]:
    """Yield what is missing of each tracker."""
    for name in dict.fromkeys(names):
        if not is_installed(name):
            yield f'{name} is not installed. Use `pip install -c constraints.txt -e ".[{name}]"`.'
        elif name == "wandb" and not has_login():
            text = "wandb has no API key. Run `wandb login`, set WANDB_API_KEY, or set "
            yield f"{text}WANDB_MODE=offline to log to this machine only."


def is_installed(package: str) -> bool:
    """Tell whether a package can be imported; a folder of its name in a path is not one."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def has_login() -> bool:
    """Tell whether W&B needs no login, or has credentials for its server."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib.wbauth import read_netrc_auth

    settings = wandb_setup.singleton().settings
    if settings.mode in ("offline", "disabled", "dryrun"):
        return True
    if settings.api_key or settings.identity_token_file:
        return True
    return read_netrc_auth(host=settings.base_url) is not None
