"""Load a result from disk or from the Hub: model, tokenizer and labels, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from pipelines.errors import Problem, RecipeError
from pipelines.hub.pin import pin_model
from pipelines.hub.result_folder import result_folder
from pipelines.hub_client.client import Hub, reason
from pipelines.hub_client.transport import HubError
from pipelines.models.adapters import load_adapter_weights
from pipelines.models.build import load_base
from pipelines.models.checkpoint_checks import read_config
from pipelines.models.download import fetch_checkpoint
from pipelines.process import prepare_process
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import NF4, Int8, Model, Precision
from pipelines.results.base_weights import SHAPE, checkpoint_folder, weights_sha256
from pipelines.results.check import check_result
from pipelines.results.check_config import check_fetches_nothing
from pipelines.results.check_tokenizer import load_result_tokenizer
from pipelines.results.files import consistent_read, digest
from pipelines.results.sidecar import stored_bits, tuned_options

QUANTIZATIONS: dict[str, Int8 | NF4] = {"8bit": Int8(), "4bit": NF4()}


@dataclass(frozen=True)
class LoadedResult:
    """A result, ready to use. `sidecar` is its task.json, with the labels and the metrics.

    The task of `recipe` has what the run decided by its validation rows, which recipe.json has not.
    """

    recipe: Recipe
    model: Any
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    sidecar: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the run that wrote it."""
        metrics: dict[str, Any] = self.sidecar["metrics"]
        return metrics

    @property
    def sha256(self) -> str:
        """Hash of all that decides its predictions: weights, recipe, tokenizer and labels."""
        return digest(self.sidecar)


@prepare_process()
def load_result(
    repo: str | Path,
    revision: str | None = None,
    *,
    base: str | None = None,
    base_revision: str | None = None,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
) -> LoadedResult:
    """Rebuild base, adapter, head, tokenizer and labels of a result.

    `repo` is the folder of a run or a Hub id. `base` replaces the base that the adapter names, for
    example by a copy on disk; it must have the same shape, and the same weights or revision. The
    base is loaded in the precision it was trained in, or in `precision`. Full models load the same
    way.

    Raise RecipeError for a repository that does not exist, for one that `check_result` refuses, and
    for a base that is not the adapter's; NonFiniteError for weights that are not finite.
    """
    folder = result_folder(repo, revision)
    with consistent_read(folder, str(repo)):
        return load_folder(
            folder,
            name=str(repo),
            base=base,
            base_revision=base_revision,
            precision=precision,
            device=device,
        )


def load_folder(
    folder: Path,
    *,
    name: str,
    base: str | None,
    base_revision: str | None,
    precision: Precision | None,
    device: str | torch.device | None,
) -> LoadedResult:
    """Load a result from a folder whose files belong together, as `load_result` does.

    `name` is the result's name in messages, as the user typed it.
    """
    recipe, sidecar = check_result(folder)
    check_precision(sidecar, precision, name)
    labels = tuple(sidecar["labels"])
    tokenizer = load_result_tokenizer(folder, sidecar)
    quantization = recipe.quantization
    if precision is not None and stored_bits(sidecar) is None:
        quantization = QUANTIZATIONS.get(precision)
    source, path = Model(name_or_path=str(folder)), name
    if recipe.lora is not None:
        source, path = _find_base(recipe, sidecar, base, base_revision), "base"
    model: Any = load_base(
        recipe.task,
        source,
        labels,
        quantization=quantization,
        tokenizer=tokenizer,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        head="own" if recipe.lora is None else "adapter",
        path=path,
    )
    if recipe.lora is not None:
        model = load_adapter_weights(model, folder, path=name)
    if quantization is None and stored_bits(sidecar) is None:
        model = model.to(device or PartialState().device)
    task = recipe.task.tuned(tuned_options(sidecar))
    recipe = replace(recipe, task=task, output_dir=str(folder))
    return LoadedResult(recipe, model.eval(), tokenizer, labels, sidecar)


def check_precision(sidecar: dict[str, Any], precision: Precision | None, name: str) -> None:
    """Raise RecipeError for another precision than that of weights that are stored in few bits."""
    bits = stored_bits(sidecar)
    if bits is not None and precision not in (None, f"{bits}bit"):
        text = f"is stored in {bits} bits, and cannot be loaded in {precision}."
        raise RecipeError([Problem(name, text)])


def _find_base(
    recipe: Recipe, sidecar: dict[str, Any], base: str | None, base_revision: str | None
) -> Model:
    """Return the base of an adapter, or `base` in its place, checked against task.json."""
    assert isinstance(recipe.model, Model)
    model = recipe.model
    if base is not None:
        problems: list[Problem] = []
        given = Model(name_or_path=base, revision=base_revision)
        model = pin_model(Hub(), given, path="base", problems=problems)
        if problems:
            raise RecipeError(problems)
    check_base(model, sidecar["base"])
    return model


def check_base(source: Model, recorded: dict[str, Any], *, weights: bool = True) -> None:
    """Raise RecipeError for a base that is missing, or is not the recorded one.

    A base on the Hub is downloaded to the cache, without its weights unless `weights`. Shapes are
    compared, and revisions if both have one. Otherwise the hashes of the `weights` are: a folder of
    the same name and shape may hold a base that was trained again.
    """
    try:
        folder = fetch_checkpoint(source, weights=weights)
        name = str(folder) if folder.is_dir() else source.name_or_path
        fields, _ = PreTrainedConfig.get_config_dict(name, revision=source.revision)
        check_fetches_nothing(fields, "config.json of the base", but=("quantization_config",))
        config = (
            read_config(source, None, "base")
            if Path(source.name_or_path).is_dir()
            else AutoConfig.from_pretrained(name, revision=source.revision, trust_remote_code=False)
        )
    except (HubError, HFValidationError, OSError) as error:  # OSError: a file is missing
        text = (
            f"the adapter's base, {source.name_or_path!r}, is not a folder here, and cannot be "
            f"downloaded from the Hub: {reason(error)} Name a copy of it."
        )
        raise RecipeError([Problem("base", text)]) from error
    values = {name: getattr(config, name) for name in SHAPE}
    if source.revision is not None and recorded["revision"] is not None:
        values["revision"] = source.revision
    problems = [
        Problem(
            "base",
            f"the adapter was trained on {name} {recorded[name]}, but {source.name_or_path} "
            f"has {value}.",
        )
        for name, value in values.items()
        if value != recorded[name]
    ]
    if problems:
        raise RecipeError(problems)
    if weights and "revision" not in values and recorded.get("sha256") is not None:
        sha256 = weights_sha256(checkpoint_folder(source))
        if sha256 not in (None, recorded["sha256"]):  # None: there are none, as loading will tell
            raise RecipeError([different_weights("base", source.name_or_path, sha256, recorded)])


def different_weights(
    flag: str, name: str, sha256: str | None, recorded: dict[str, Any]
) -> Problem:
    """Return the problem of a base with other weights than the adapter was trained on."""
    return Problem(
        flag,
        f"the adapter was trained on weights with SHA-256 {recorded['sha256']}, but those of "
        f"{name} have {sha256}. Name the base that it was trained on.",
    )
