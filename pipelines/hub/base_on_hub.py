"""The base of an adapter on the Hub, checked against the weights it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo

from pipelines.data.local_files import is_path
from pipelines.errors import Problem, RecipeError
from pipelines.hub.load import check_base
from pipelines.hub_client.client import Hub, reason
from pipelines.models.download import fetch_checkpoint, weight_files
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.results.base_weights import combined_sha256, weights_sha256


def trained_on(model: Model, recorded: dict[str, Any], flag: str) -> dict[str, Any]:
    """Return what is recorded of a base, with the hash of its weights.

    A result of an earlier version has no hash: then the folder that its recipe names decides.
    """
    if recorded.get("sha256"):
        return recorded
    found = weights_sha256(Path(model.name_or_path))
    if found is None:
        text = (
            "task.json does not record the weights that the adapter was trained on, and "
            f"{model.name_or_path!r} is not there to compare with. Train it again to record them."
        )
        raise RecipeError([Problem(flag, text)])
    return recorded | {"sha256": found}


def base_on_hub(hub: Hub, name: str, revision: str | None, recorded: dict[str, Any]) -> Model:
    """Return a base of the Hub at its commit. Raise RecipeError for another one than recorded."""
    try:
        info = hub.ask(lambda api: api.model_info(name, revision=revision, files_metadata=True))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" at {revision!r}" if revision else ""
        text = f"{name!r}{at} is not on the Hub: {reason(error)}"
        raise RecipeError([Problem("base", text)]) from error
    model = Model(name_or_path=name, revision=info.sha)
    found = weights_on_hub(model, info)
    if found != recorded["sha256"]:
        raise RecipeError([other_weights("base", name, found, recorded)])
    check_base(model, recorded | {"revision": None}, weights=False)
    return model


def license_of_base(hub: Hub, recipe: Recipe) -> str | None:
    """Return the licence id on the card of a recipe's base on the Hub, or None if unknown.

    A base that is gone, or that this account may not see, leaves it unknown, and so does
    HF_HUB_OFFLINE. Raise HubError, or the error of the Hub, when it does not answer.
    """
    model = recipe.model
    if is_offline_mode() or not isinstance(model, Model) or is_path(model.name_or_path):
        return None
    name, revision = model.name_or_path, model.revision
    try:
        info = hub.ask(lambda api: api.model_info(name, revision=revision))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        return None
    found = info.card_data.get("license") if info.card_data else None
    return found if isinstance(found, str) and found else None


def weights_on_hub(model: Model, info: ModelInfo) -> str | None:
    """Return the hash of a checkpoint's weights; they are downloaded if the Hub lists none."""
    listed = {each.rfilename: each.lfs for each in info.siblings or []}
    names = weight_files(listed)
    hashes = {name: lfs.sha256 for name in names if (lfs := listed[name]) is not None}
    if hashes and len(hashes) == len(names):
        return combined_sha256(hashes)
    return weights_sha256(fetch_checkpoint(model))


def other_weights(flag: str, name: str, found: str | None, recorded: dict[str, Any]) -> Problem:
    """Return the problem of a base with other weights."""
    return Problem(
        flag,
        f"the adapter was trained on weights with SHA-256 {recorded['sha256']}, but those of "
        f"{name} have {found}. Name the base that it was trained on.",
    )
