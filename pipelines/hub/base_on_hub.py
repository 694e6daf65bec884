"""The base of an adapter on the Hub: its licence, and whether it has the weights trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo

from pipelines.data.local_files import is_path
from pipelines.errors import Problem, RecipeError
from pipelines.hub.load import check_base, different_weights
from pipelines.hub_client.client import Hub, reason
from pipelines.models.download import fetch_checkpoint, weight_files
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.results.base_weights import combined_sha256, weights_sha256


def with_weights_hash(model: Model, recorded: dict[str, Any], *, flag: str) -> dict[str, Any]:
    """Return the record of a base in task.json, with the hash of its weights.

    Results of earlier versions record no hash; it is computed from the folder that the recipe
    names. Raise RecipeError if that is gone.
    """
    if recorded.get("sha256"):
        return recorded
    sha256 = weights_sha256(Path(model.name_or_path))
    if sha256 is None:
        text = (
            "task.json does not record the weights that the adapter was trained on, and "
            f"{model.name_or_path!r} is not there to compare with. Train it again to record them."
        )
        raise RecipeError([Problem(flag, text)])
    return recorded | {"sha256": sha256}


def find_base_on_hub(hub: Hub, name: str, revision: str | None, recorded: dict[str, Any]) -> Model:
    """Return a base of the Hub at its commit. Raise RecipeError unless it is the recorded one."""
    try:
        info = hub.ask(lambda api: api.model_info(name, revision=revision, files_metadata=True))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" at {revision!r}" if revision else ""
        text = f"{name!r}{at} is not on the Hub: {reason(error)}"
        raise RecipeError([Problem("base", text)]) from error
    model = Model(name_or_path=name, revision=info.sha)
    sha256 = hub_weights_sha256(model, info)
    if sha256 != recorded["sha256"]:
        raise RecipeError([different_weights("base", name, sha256, recorded)])
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
    license_id = info.card_data.get("license") if info.card_data else None
    return license_id if isinstance(license_id, str) and license_id else None


def hub_weights_sha256(model: Model, info: ModelInfo) -> str | None:
    """Return the hash of a checkpoint's weights; download them if the Hub lists no hashes."""
    listed = {each.rfilename: each.lfs for each in info.siblings or []}
    names = weight_files(listed)
    hashes = {name: lfs.sha256 for name in names if (lfs := listed[name]) is not None}
    if hashes and len(hashes) == len(names):
        return combined_sha256(hashes)
    return weights_sha256(fetch_checkpoint(model))
