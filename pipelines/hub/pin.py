"""Decide every name in a recipe: a commit of the Hub, or an explicit local path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipelines.data.local_files import is_local, nearest_path
from pipelines.errors import Problem, RecipeError
from pipelines.hub_client.client import Hub, reason
from pipelines.hub_client.transport import HubError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch
from pipelines.results.names import explicit


def pin_revisions(recipe: Recipe) -> Recipe:
    """Return the recipe with every name decided: a commit of the Hub, or an explicit local path.

    A local path then starts with "." or "/", which no Hub id does, so that nothing later has to
    look whether a path exists; and two runs of the result read the same bytes of the Hub. With
    HF_HUB_OFFLINE the cache decides, and nothing is pinned. Raise RecipeError for what is neither
    on disk nor on the Hub.
    """
    hub = Hub()
    problems: list[Problem] = []
    model: Model | Scratch = recipe.model
    if isinstance(model, Model):
        model = pin_model(hub, model, "model", problems)
    elif isinstance(model.tokenizer, Model):
        tokenizer = pin_model(hub, model.tokenizer, "model.tokenizer", problems)
        model = replace(model, tokenizer=tokenizer)
    source = recipe.task.dataset
    if is_local(source):
        source = replace(source, path=explicit(source.path))
    else:
        num_problems = len(problems)
        commit = commit_of(
            hub, source.path, source.revision, "dataset", "task.dataset.path", problems
        )
        nearest = nearest_path(Path(source.path))
        if len(problems) > num_problems and nearest is not None:
            text = f"did you mean the local {nearest}?"
            problems.append(Problem("task.dataset.path", text))
        source = replace(source, revision=commit)
    if problems:
        raise RecipeError(problems)
    return replace(recipe, model=model, task=replace(recipe.task, dataset=source))


def pin_model(hub: Hub, model: Model, path: str, problems: list[Problem]) -> Model:
    """Return a checkpoint and its tokenizer with their commits, or with explicit paths."""
    name, tokenizer = explicit(model.name_or_path), model.tokenizer
    if Path(name).is_dir():
        model = replace(model, name_or_path=name)
    else:
        field = f"{path}.name_or_path"
        commit = commit_of(hub, name, model.revision, "model", field, problems)
        model = replace(model, revision=commit)
    if tokenizer is None:
        return model
    if Path(explicit(tokenizer)).is_dir():
        return replace(model, tokenizer=explicit(tokenizer))
    revision, field, file = model.tokenizer_revision, f"{path}.tokenizer", "tokenizer_config.json"
    commit = commit_of(hub, tokenizer, revision, "model", field, problems, file=file)
    return replace(model, tokenizer_revision=commit)


def commit_of(
    hub: Hub,
    name: str,
    revision: str | None,
    kind: str,
    path: str,
    problems: list[Problem],
    *,
    file: str = "config.json",
) -> str | None:
    """Return the commit that `revision`, or the default branch, names on the Hub now.

    Offline, a model must have `file` in the cache.
    """
    try:
        if is_offline_mode():
            if kind == "model" and try_to_load_from_cache(name, file) is None:
                text = f"{name!r} is no folder and not in the cache, and HF_HUB_OFFLINE is set."
                problems.append(Problem(path, text))
            return revision
        return hub.ask(lambda api: str(api.repo_info(name, revision=revision, repo_type=kind).sha))
    except GatedRepoError as error:
        text = f"{name!r} is gated: {reason(error)}. Ask for access on its page."
        problems.append(Problem(path, text))
    except RepositoryNotFoundError:
        problems.append(Problem(path, f"{name!r} is no folder and no {kind} on the Hub."))
    except RevisionNotFoundError:
        problems.append(Problem(path, f"{name!r} has no revision {revision!r}."))
    except HFValidationError:
        problems.append(Problem(path, f"{name!r} is no folder and no Hub id."))
    except HubError as error:
        problems.append(Problem(path, f"{name!r} is no folder here, and {error}"))
    except HfHubHTTPError as error:
        text = f"{name!r} is no folder here, and {constants.ENDPOINT} refuses it: {reason(error)}"
        problems.append(Problem(path, text))
    return None
