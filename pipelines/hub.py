"""Save a result so that it loads with its labels, and load it again, from disk or from the Hub."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import (
    constants,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase, Trainer

from pipelines.check_result import check_fetches_nothing, check_result, load_result_tokenizer
from pipelines.checkpoints import promised
from pipelines.data import Splits, is_local
from pipelines.errors import Problem, RecipeError
from pipelines.hub_client import (
    Hub,
    HubError,
    fetch_checkpoint,
    is_path,
    reason,
    weight_files,
)
from pipelines.local_files import nearest_path
from pipelines.models import load_base
from pipelines.pretrained import load_adapter_weights, read_config
from pipelines.recipe import NF4, Int8, Model, Recipe, Scratch
from pipelines.report import plot_training, quietly
from pipelines.result import FILES, digest, new_stage, swap_in, unchanging, write_manifest
from pipelines.trainer import RecipeTrainer

Precision = Literal["fp32", "bf16", "8bit", "4bit"]
SHAPE = ("hidden_size", "num_hidden_layers", "vocab_size")
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "bitsandbytes")


def pin(recipe: Recipe) -> Recipe:
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


def explicit(path: str) -> str:
    """Return a path that exists here so that it starts with "." or "/"; a Hub id as it is."""
    path = os.path.expanduser(path)
    if is_path(path) or not Path(path).exists():
        return path
    return f"./{path}"


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


@dataclass(frozen=True)
class Loaded:
    """A result, ready to use. `sidecar` is its task.json, with the labels and the metrics."""

    recipe: Recipe
    model: Any
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    sidecar: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the run that wrote it."""
        return self.sidecar["metrics"]

    @property
    def sha256(self) -> str:
        """Hash of its weights, its recipe, its tokenizer and its labels."""
        return digest(self.sidecar)


def save(
    trainer: RecipeTrainer,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    metrics: dict[str, Any],
    splits: Splits,
) -> Path:
    """Write a result and swap it in whole; rank 0 alone.

    It holds the adapter or the model, the tokenizer, recipe.json, task.json and the curve. Raise
    CheckpointError when the disk does not take it; the result before it is then still whole.
    """
    folder = recipe.folder
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        saved = [p for p in model.parameters() if recipe.lora is None or p.requires_grad]
        size = sum(p.numel() * p.element_size() for p in saved)
        told = "A result that was there before, and the last checkpoint, are whole. Make room and "
        with promised(folder, size, f"{told}run the same command again to resume."):
            stage = new_stage(folder)
            write_result(stage, trainer, recipe, tokenizer, labels, metrics, splits)
        with promised(folder, 0, "The same command puts the new result in place."):
            swap_in(folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def write_result(
    stage: Path,
    trainer: RecipeTrainer,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    metrics: dict[str, Any],
    splits: Splits,
) -> None:
    """Write the files of a result to an empty folder, task.json last."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if recipe.lora is None:
        model.config.use_cache = True
    model.save_pretrained(stage)
    (stage / "README.md").unlink(missing_ok=True)  # PEFT's; `publish` writes the card
    tokenizer.save_pretrained(stage)
    compact(tokenizer, stage)
    text = replace(recipe, overwrite=False).to_json()
    (stage / "recipe.json").write_text(text, encoding="utf-8")
    plot_training(trainer.state.log_history, stage / "training_curve.png")
    sidecar = {
        "task": type(recipe.task).__name__,
        "labels": list(labels),
        "pad_token_id": tokenizer.pad_token_id,
        "max_length": tokenizer.model_max_length,
        "base": base_of(recipe, model),
        "dataset": {
            "path": public_name(recipe.task.dataset.path),
            "name": recipe.task.dataset.name,
            "revision": recipe.task.dataset.revision,
            "train_rows_sha256": trainer.identity["data"]["train"],
            "eval_rows_sha256": splits.held_out.fingerprint(),
            "splits": splits.record,
        },
        "run": trainer.identity["run"],
        "changed_on_resume": trainer.identity["changed"],
        "hardware": hardware(trainer),
        "versions": {name: version(name) for name in LIBRARIES},
        "metrics": metrics,
    }
    write_manifest(stage, sidecar)


def compact(tokenizer: Any, folder: Path) -> None:
    """Write tokenizer.json again without its indentation: GPT-2's shrinks from 3.6 to 1.6 MB.

    Slow tokenizers have no such file.
    """
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def base_of(recipe: Recipe, model: Any) -> dict[str, Any] | None:
    """Return what identifies an adapter's base: its name, revision and shape."""
    if recipe.lora is None:
        return None
    assert isinstance(recipe.model, Model)
    config = model.get_base_model().config
    named: dict[str, Any] = {
        "name_or_path": recipe.model.name_or_path,
        "revision": recipe.model.revision,
        "sha256": weights_sha256(checkpoint_folder(recipe.model)),
    }
    return named | {name: getattr(config, name) for name in SHAPE}


def checkpoint_folder(model: Model) -> Path:
    """Return the folder that holds a checkpoint's files: its own, or that of the cache."""
    name = model.name_or_path
    cached = None if is_path(name) else cached_file(name, "config.json", model.revision)
    return Path(name) if cached is None else cached.parent


def cached_file(name: str, file: str, revision: str | None) -> Path | None:
    """Return a file of a repository in the cache, or None."""
    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def weights_sha256(folder: Path) -> str | None:
    """Return what tells the weights of a checkpoint from others: see `combined_sha256`.

    None where they are not there any more: a result that is trained is not lost for that.
    """
    hashes = {}
    try:
        for name in weight_files(file.name for file in folder.iterdir()):
            with (folder / name).open("rb") as content:
                hashes[name] = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return None
    return combined_sha256(hashes) if hashes else None


def combined_sha256(hashes: dict[str, str]) -> str:
    """Return the hash of a checkpoint by those of its safetensors: of a single file, its own."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def public_name(name: str) -> str:
    """Return a Hub id as it is, and a local path as others may read it, starting with "./".

    What is below the current folder keeps its place in it; of other paths the last part is left.
    """
    if not is_path(name):
        return name
    place = Path(os.path.abspath(name))  # links stay as they were typed
    if place != Path.cwd() and place.is_relative_to(Path.cwd()):
        return f"./{place.relative_to(Path.cwd()).as_posix()}"
    return f"./{place.name}"


def hardware(trainer: Trainer) -> str:
    """Name what the run computed on."""
    device = trainer.accelerator.device
    if device.type == "cuda":
        return f"{trainer.accelerator.num_processes} x {torch.cuda.get_device_name(device)}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


@quietly()
def load_adapter(
    repo: str | Path,
    revision: str | None = None,
    *,
    base: str | None = None,
    base_revision: str | None = None,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
) -> Loaded:
    """Rebuild base, adapter, head, tokenizer and labels of a result.

    `repo` is the folder of a run or a Hub id. `base` replaces the base that the adapter names,
    say by a copy on disk; it must have the same width, depth, vocabulary and revision. The base is
    loaded as it was trained on, or in another `precision`. Full models load the same way.

    Raise RecipeError for a repository that is not there, for one that `check_result` refuses, and
    for another base than the adapter's; NonFiniteError for weights that are not finite.
    """
    folder = result_folder(repo, revision)
    with unchanging(folder, str(repo)):
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
) -> Loaded:
    """Do what `load_adapter` does, for a folder whose files are known to belong together.

    `name` is what the user calls it, for messages.
    """
    recipe, sidecar = check_result(folder)
    labels = tuple(sidecar["labels"])
    tokenizer = load_result_tokenizer(folder, sidecar)
    source, path = Model(name_or_path=str(folder)), name
    if recipe.lora is not None:
        assert isinstance(recipe.model, Model)
        source, path = recipe.model, "base"
        if base is not None:
            problems: list[Problem] = []
            named = Model(name_or_path=base, revision=base_revision)
            source = pin_model(Hub(), named, "base", problems)
            if problems:
                raise RecipeError(problems)
        check_base(source, sidecar["base"])
    quantization = recipe.quantization
    if precision is not None:
        others: dict[str, Int8 | NF4] = {"8bit": Int8(), "4bit": NF4()}
        quantization = others.get(precision)
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
    if quantization is None:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = replace(recipe, output_dir=str(folder))
    return Loaded(recipe, model.eval(), tokenizer, labels, sidecar)


def result_folder(repo: str | Path, revision: str | None) -> Path:
    """Return the folder of a result, downloaded if it is not on disk."""
    folder = Path(repo)
    if not folder.is_dir():
        hub = Hub()
        problems: list[Problem] = []
        name = str(repo)
        commit = commit_of(hub, name, revision, "model", name, problems)
        if problems:
            raise RecipeError(problems)
        try:
            folder = hub.download(name, commit, list(FILES))
        except (HubError, HfHubHTTPError, OSError) as error:
            text = f"cannot be downloaded: {reason(error)}"
            raise RecipeError([Problem(name, text)]) from error
    missing = [name for name in ("recipe.json", "task.json") if not (folder / name).is_file()]
    if missing:
        text = f"has no {' and no '.join(missing)}: no run of a recipe wrote it."
        raise RecipeError([Problem(str(repo), text)])
    return folder


def check_base(source: Model, recorded: dict[str, Any], *, weights: bool = True) -> None:
    """Raise RecipeError for a base that is not there, or, with both values, for another one.

    A base of the Hub is downloaded to the cache, with its `weights` unless they are not needed.
    """
    try:
        folder = fetch_checkpoint(source, weights=weights)
        name = str(folder) if folder.is_dir() else source.name_or_path
        given, _ = PreTrainedConfig.get_config_dict(name, revision=source.revision)
        check_fetches_nothing(given, "config.json of the base", but=("quantization_config",))
        config = (
            read_config(source, None, "base")
            if Path(source.name_or_path).is_dir()
            else AutoConfig.from_pretrained(name, revision=source.revision, trust_remote_code=False)
        )
    except (HubError, HFValidationError, OSError) as error:  # OSError: a file is missing
        text = (
            f"the adapter's base, {source.name_or_path!r}, is no folder here, and not to be had "
            f"from the Hub: {reason(error)} Name a copy of it."
        )
        raise RecipeError([Problem("base", text)]) from error
    found = {name: getattr(config, name) for name in SHAPE}
    if source.revision is not None and recorded["revision"] is not None:
        found["revision"] = source.revision
    problems = [
        Problem(
            "base",
            f"the adapter was trained on {name} {recorded[name]}, but {source.name_or_path} "
            f"has {value}.",
        )
        for name, value in found.items()
        if value != recorded[name]
    ]
    if problems:
        raise RecipeError(problems)
