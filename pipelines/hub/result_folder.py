"""The folder of a result: of a run on disk, or downloaded from the Hub. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from pipelines.errors import Problem, RecipeError
from pipelines.hub.pin import pin_result
from pipelines.hub_client.client import Hub, reason
from pipelines.hub_client.transport import HubError
from pipelines.results.files import FILES


def result_folder(
    repo: str | Path, revision: str | None = None, *, files: Sequence[str] = FILES
) -> Path:
    """Return the folder of a result, whose `files` are downloaded if it is not on disk.

    Raise RecipeError for a repository that does not exist, and for one without a result.
    """
    folder = Path(repo)
    if not folder.is_dir():
        hub = Hub()
        problems: list[Problem] = []
        name = str(repo)
        _, commit = pin_result(hub, name, revision, path=name, problems=problems)
        if problems:
            raise RecipeError(problems)
        try:
            folder = hub.download(name, commit, list(files))
        except (HubError, HfHubHTTPError, OSError) as error:
            text = f"cannot be downloaded: {reason(error)}"
            raise RecipeError([Problem(name, text)]) from error
    missing = [name for name in ("recipe.json", "task.json") if not (folder / name).is_file()]
    if missing:
        text = f"has no {' and no '.join(missing)}: it is not the result of a recipe."
        raise RecipeError([Problem(str(repo), text)])
    return folder
