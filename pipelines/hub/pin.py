"""Resolve every name in a recipe to a commit of the Hub or an explicit local path."""

from __future__ import annotations

import os
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

from pipelines.data.local_files import is_local
from pipelines.data.source import DatasetSource
from pipelines.errors import Problem, RecipeError
from pipelines.hub_client.client import Hub, reason
from pipelines.hub_client.transport import HubError
from pipelines.paths import nearest_path
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch
from pipelines.results.names import explicit


def pin_revisions(recipe: Recipe) -> Recipe:
    """Return the recipe with every name resolved to a commit of the Hub or an explicit local path.

    A local path then starts with "." or "/", which no Hub id does, so that no later step checks
    whether a path exists, and every run of the recipe reads the same bytes of the Hub. With
    HF_HUB_OFFLINE names must be in the cache, and no commit is resolved. Raise RecipeError for a
    name that is neither on disk nor on the Hub.
    """
    hub = Hub()
    problems: list[Problem] = []
    model: Model | Scratch = recipe.model
    if isinstance(model, Model):
        model = pin_model(hub, model, path="model", problems=problems)
    elif isinstance(model.tokenizer, Model):
        tokenizer = pin_model(hub, model.tokenizer, path="model.tokenizer", problems=problems)
        model = replace(model, tokenizer=tokenizer)
    distillation = recipe.distillation
    if distillation is not None:
        name, commit = pin_result(
            hub,
            distillation.teacher,
            distillation.revision,
            path="distillation.teacher",
            problems=problems,
        )
        distillation = replace(distillation, teacher=name, revision=commit)
    source = recipe.task.dataset
    path, commit = pin_dataset(hub, source, "task.dataset", problems)
    mixed = []
    for index, each in enumerate(source.mixed_with or ()):
        field = f"task.dataset.mixed_with.{index}"
        its_path, its_commit = pin_dataset(hub, each.source, field, problems)
        mixed.append(replace(each, path=its_path, revision=its_commit))
    if problems:
        raise RecipeError(problems)
    source = replace(source, path=path, revision=commit, mixed_with=tuple(mixed) or None)
    task = replace(recipe.task, dataset=source)
    return replace(recipe, model=model, distillation=distillation, task=task)


def pin_dataset(
    hub: Hub, source: DatasetSource, path: str, problems: list[Problem]
) -> tuple[str, str | None]:
    """Return the explicit path of a local source, or the id and the commit of one on the Hub.

    `path` is that of the source, in the problems that are added to `problems`.
    """
    if is_local(source):
        return explicit(source.path), source.revision
    num_problems, path = len(problems), f"{path}.path"
    commit = resolve_commit(
        hub, source.path, source.revision, kind="dataset", path=path, problems=problems
    )
    nearest = nearest_path(Path(source.path))
    if len(problems) > num_problems and nearest is not None:
        problems.append(Problem(path, f"did you mean the local {nearest}?"))
    return source.path, commit


def pin_model(hub: Hub, model: Model, *, path: str, problems: list[Problem]) -> Model:
    """Return a checkpoint and its tokenizer with their commits, or with explicit paths.

    `path` is that of the field, in the problems that are added to `problems`.
    """
    name, tokenizer = explicit(model.name_or_path), model.tokenizer
    if Path(name).is_dir():
        model = replace(model, name_or_path=name)
    else:
        commit = resolve_commit(
            hub, name, model.revision, kind="model", path=f"{path}.name_or_path", problems=problems
        )
        model = replace(model, revision=commit)
    if tokenizer is None:
        return model
    if Path(explicit(tokenizer)).is_dir():
        return replace(model, tokenizer=explicit(tokenizer))
    commit = resolve_commit(
        hub,
        tokenizer,
        model.tokenizer_revision,
        kind="model",
        path=f"{path}.tokenizer",
        problems=problems,
        file="tokenizer_config.json",
    )
    return replace(model, tokenizer_revision=commit)


def pin_result(
    hub: Hub, name: str, revision: str | None, *, path: str, problems: list[Problem]
) -> tuple[str, str | None]:
    """Return the explicit path of a result's folder, or its Hub id and its commit.

    `path` is that of the field, in the problems that are added to `problems`.
    """
    if Path(explicit(name)).is_dir():
        return explicit(name), None
    if Path(name).is_file():
        text = f"{name!r} is a file. Give the folder of a result, or its id on the Hub."
        problems.append(Problem(path, text))
        return name, None
    commit = resolve_commit(
        hub, name, revision, kind="model", path=path, problems=problems, file="task.json"
    )
    return name, commit


def resolve_commit(
    hub: Hub,
    name: str,
    revision: str | None,
    *,
    kind: str,
    path: str,
    problems: list[Problem],
    file: str = "config.json",
) -> str | None:
    """Return the commit that `revision`, or the default branch, has on the Hub now.

    `kind` is "model" or "dataset". What is wrong is added to `problems`, for the field at `path`.
    With HF_HUB_OFFLINE the revision is returned as it is, and a model must have `file` in the
    cache.
    """
    try:
        if is_offline_mode():
            if kind == "model" and try_to_load_from_cache(name, file) is None:
                text = f"{name!r} is not a folder, nor in the cache, and HF_HUB_OFFLINE is set."
                problems.append(Problem(path, text))
            return revision
        return hub.ask(lambda api: str(api.repo_info(name, revision=revision, repo_type=kind).sha))
    except GatedRepoError as error:
        text = f"{name!r} is gated: {reason(error)}. Request access on its page."
        problems.append(Problem(path, text))
    except RepositoryNotFoundError:
        text = f"{name!r} is not a folder, nor a {kind} on the Hub."
        if "HF_ENDPOINT" in os.environ:  # another Hub has other repositories
            text += f" HF_ENDPOINT is {os.environ['HF_ENDPOINT']}."
        problems.append(Problem(path, text))
    except RevisionNotFoundError:
        problems.append(Problem(path, f"{name!r} has no revision {revision!r}."))
    except HFValidationError:
        problems.append(Problem(path, f"{name!r} is not a folder, nor a Hub id."))
    except HubError as error:
        problems.append(Problem(path, f"{name!r} is not a folder here, and {error}"))
    except HfHubHTTPError as error:
        text = (
            f"{name!r} is not a folder here, and {constants.ENDPOINT} refuses it: {reason(error)}"
        )
        problems.append(Problem(path, text))
    return None
