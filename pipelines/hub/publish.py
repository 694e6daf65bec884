"""Publish a result to the Hub: checks before training, one commit after it, read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from pipelines.console import console
from pipelines.errors import Problem, PublishError, RecipeError
from pipelines.hub.base_on_hub import find_base_on_hub, license_of_base, with_weights_hash
from pipelines.hub.contents import check_contents, content_size, contents_of, make_portable
from pipelines.hub.destination import destination_problems
from pipelines.hub.load import different_weights, load_result
from pipelines.hub.upload import check_repository_unchanged, find_changed_files, list_files, upload
from pipelines.hub_client.client import Hub, reason
from pipelines.hub_client.transport import HubError
from pipelines.process import quiet_libraries
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.results.base_weights import checkpoint_folder, weights_sha256
from pipelines.results.check import check_result
from pipelines.results.files import read_result
from pipelines.results.lock import lock_for_reading


def publish_finished(folder: Path, repo: str, *, public: bool) -> str:
    """Publish what a command has just computed; any problem is a PublishError.

    The destination was checked before the training, so a problem is not one of the recipe, and the
    message must say that the result is complete.
    """
    try:
        return publish(folder, repo, public=public)
    except RecipeError as error:
        text = " ".join(
            each.message if each.path == "REPO" else f"{each.path}: {each.message}"
            for each in error.problems
        )
        raise PublishError(folder, repo, ["--public"] if public else [], text) from error


@quiet_libraries()
def publish(
    folder: str | Path,
    repo: str,
    *,
    public: bool = False,
    base: str | None = None,
    with_base: str | None = None,
) -> str:
    """Upload a result in one commit, read its checksums back and return the commit.

    `base` is a Hub id (with "@" and a revision, if not the newest) to name as an adapter's base,
    instead of the folder that it was trained on; it must have the same weights. `with_base` is a
    Hub id to publish that folder to first.

    Raise RecipeError for a result or a destination that cannot be published, before any file is
    sent, and PublishError when the Hub fails. Then the same call resumes: files that have arrived
    are not sent again.
    """
    folder = Path(folder)
    options = ["--public"] if public else []
    options += ["--base", base] if base else []
    options += ["--with-base", with_base] if with_base else []
    with lock_for_reading(folder):
        return _publish_locked(folder, repo, options, public=public, base=base, with_base=with_base)


def _publish_locked(
    folder: Path,
    repo: str,
    options: list[str],
    *,
    public: bool,
    base: str | None,
    with_base: str | None,
) -> str:
    """Publish a result from a folder that is locked; `options` are those of the command."""
    recipe, sidecar = read_publishable_result(folder)
    hub = Hub()
    try:
        if base or with_base:
            recipe, sidecar = with_published_base(
                hub, recipe, sidecar, base=base, with_base=with_base, public=public
            )
        base_license = None if recipe.license else license_of_base(hub, recipe)
        contents = contents_of(
            folder, make_portable(recipe), sidecar, repo, base_license=base_license
        )
        check_contents(contents)
        if problems := destination_problems(hub, recipe, repo, public=public, flag="REPO"):
            raise RecipeError(problems)
        gated = bool(hub.ask(lambda api: api.model_info(repo)).gated)
        num_bytes = sum(map(content_size, contents.values()))
        commit = hub.ask(lambda api: upload(api, contents, repo), num_bytes=num_bytes)
        uploaded = hub.ask(lambda api: list_files(api, repo, commit))
        if changed := find_changed_files(contents, uploaded):
            raise PublishError(folder, repo, options, f"{', '.join(changed)} arrived changed")
        if problem := check_repository_unchanged(hub, repo, public=public, gated=gated):
            raise PublishError(folder, repo, options, problem)
    except (HubError, HfHubHTTPError, OSError, RuntimeError) as error:
        raise PublishError(folder, repo, options, reason(error)) from error
    console().print(f"published: {constants.ENDPOINT}/{repo} at {commit}", markup=False)
    return commit


def publish_base(model: Model, recorded: dict[str, Any], repo: str, *, public: bool) -> str:
    """Publish the folder that an adapter was trained on; return its id and commit."""
    folder = Path(model.name_or_path)
    if not folder.is_dir():
        text = (
            f"the adapter's base, {model.name_or_path!r}, is not here. Use this command in the "
            "folder where the run was started, or --base for a base that is on the Hub."
        )
        raise RecipeError([Problem("with_base", text)])
    if not (folder / "task.json").is_file():
        text = (
            f"{folder} is a checkpoint without recipe.json and task.json, from which no card can "
            f"be written. Upload it with `hf upload {repo} {folder}`, with the card and licence "
            f"that it came with, and use --base {repo}."
        )
        raise RecipeError([Problem("with_base", text)])
    sha256 = weights_sha256(checkpoint_folder(model))
    if sha256 != recorded["sha256"]:
        raise RecipeError([different_weights("with_base", str(folder), sha256, recorded)])
    return f"{repo}@{publish(folder, repo, public=public)}"


def read_publishable_result(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return recipe and sidecar. Raise RecipeError for a folder without a whole result."""
    weights = "adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"
    needed = [name for name in ("recipe.json", "task.json") if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in weights):
        needed.append(weights[0])
    if needed:
        raise RecipeError([Problem(str(folder), f"has no {' and no '.join(needed)}.")])
    read_result(folder, str(folder))
    recipe, sidecar = check_result(folder)
    # In the run's own folder, task.json has the name of the data for others to read.
    source = replace(recipe.task.dataset, path=sidecar["dataset"]["path"])
    return replace(recipe, task=replace(recipe.task, dataset=source)), sidecar


def check_reload(
    trained: Any, accelerator: Accelerator, folder: Path, batch: dict[str, torch.Tensor]
) -> None:
    """Raise RuntimeError unless the result on disk gives the logits of the trained model.

    `batch` is a collated batch; its labels are ignored.
    """
    logits = []
    loaded = load_result(folder).model
    for parameter in loaded.parameters():
        if parameter.is_floating_point():  # DeepSpeed may train in bfloat16
            parameter.data = parameter.data.to(trained.dtype)
    for model in (trained.eval(), loaded):
        inputs = {k: v.to(trained.device) for k, v in batch.items() if k != "labels"}
        with torch.inference_mode(), accelerator.autocast():
            outputs = model(**inputs)
        each = [value.float() for name, value in outputs.items() if name.endswith("logits")]
        logits.append(torch.stack(each))
    difference = (logits[0] - logits[1]).abs().max().item()
    if not difference <= 1e-3 * max(1.0, logits[0].abs().max().item()):  # also not for NaN
        raise RuntimeError(
            f"the logits of {folder} differ from those of the trained model by {difference:.3g}."
        )


def with_published_base(
    hub: Hub,
    recipe: Recipe,
    sidecar: dict[str, Any],
    *,
    base: str | None,
    with_base: str | None,
    public: bool,
) -> tuple[Recipe, dict[str, Any]]:
    """Return recipe and sidecar of an adapter with its base on the Hub, at a commit.

    Raise RecipeError unless the base has the weights that the adapter was trained on.
    """
    flag = "base" if base else "with_base"
    if base and with_base:
        text = "excludes --base: either the base is published now, or it is on the Hub already."
        raise RecipeError([Problem("with_base", text)])
    if recipe.lora is None or not isinstance(recipe.model, Model):
        raise RecipeError([Problem(flag, "this result is a whole model, which has no base.")])
    if not isinstance(sidecar.get("base"), dict):
        raise RecipeError([Problem(flag, "task.json does not record the adapter's base.")])
    recorded = with_weights_hash(recipe.model, sidecar["base"], flag=flag)
    if with_base:
        base = publish_base(recipe.model, recorded, with_base, public=public)
    assert base is not None
    name, _, revision = base.partition("@")
    model = find_base_on_hub(hub, name, revision or None, recorded)
    address = {"name_or_path": model.name_or_path, "revision": model.revision}
    return replace(recipe, model=model), sidecar | {"base": recorded | address}
