"""Merge an adapter into its base: an ordinary model, which needs neither peft nor this project."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipelines.console import say
from pipelines.data.rows import Examples
from pipelines.errors import DataError, Problem, RecipeError
from pipelines.hub.destination import check_destination
from pipelines.hub.load import LoadedResult, load_result
from pipelines.hub.publish import publish_finished
from pipelines.hub.result_folder import result_folder
from pipelines.preparing.rows import load_prepared
from pipelines.preparing.splits import check_prepared
from pipelines.preparing.store import Store
from pipelines.process import quiet_libraries
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import to_json_value
from pipelines.reporting.report import print_score
from pipelines.results.files import FILES, consistent_read, write_manifest
from pipelines.results.names import explicit, public_name
from pipelines.results.new_folder import check_new, new_folder
from pipelines.results.sidecar import reported_rows_sha256
from pipelines.training.score import score_result

WEIGHTS = ("adapter*", "*.safetensors*", "config.json", "generation_config.json")
NOT_COPIED = (*WEIGHTS, "README.md", "recipe.json", "task.json")


@dataclass(frozen=True)
class Merged:
    """How far merging moved the logits; `of` is the largest logit.

    `moved` compares with the adapter on the base in full precision, `moved_from_quantized` with
    the adapter on the quantised base that it was trained on, if it was.
    """

    moved: float
    moved_from_quantized: float | None
    of: float


@quiet_libraries()
def merge(
    repo: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    base: str | None = None,
    publish_to: str | None = None,
    public: bool = False,
    rescore: bool = True,
) -> Merged:
    """Merge an adapter into its base, in full precision, and write the model to `out`.

    The result loads and evaluates as any other. It is scored on the rows of the run, unless they
    are not on this machine or `rescore` is False: its score is then the adapter's, and its card
    says so. With `publish_to`, USER/NAME, it is published too.

    Raise RecipeError for a result that is not an adapter, for an `out` that is not empty and for
    a destination that cannot be published to, and PublishError when the Hub does not take it.
    """
    out = Path(out)
    check_new(out)
    folder = result_folder(repo, revision)
    recipe = Recipe.from_json((folder / "recipe.json").read_text(encoding="utf-8"))
    whole = whole_recipe(recipe, repo=str(repo))
    if publish_to:
        check_destination(whole, publish_to, public=public, flag="publish")
    loaded = load_result(folder, base=base, precision="fp32")
    rows = rows_of_run(loaded)
    batch = some_inputs(loaded, rows)
    logits = logits_of(loaded.model, batch)
    with new_folder(out) as stage:
        write_merged(loaded, whole, folder, stage, repo=str(repo))
        again = load_result(stage)
        moved = largest_difference(logits_of(again.model, batch), logits)
        if rows is not None and rescore:
            write_manifest(stage, with_own_score(again, rows))
    quantized = None
    if recipe.quantization:
        trained = logits_of(load_result(folder, base=base).model, batch)
        quantized = (trained - logits).abs().max().item()
    merged = Merged(moved, moved_from_quantized=quantized, of=logits.abs().max().item())
    print_merged(loaded, merged, out)
    if publish_to:
        publish_finished(out, publish_to, public=public)
    return merged


def whole_recipe(recipe: Recipe, *, repo: str) -> Recipe:
    """Return the recipe of a merged model: without adapter, quantisation and destination.

    Raise RecipeError, which names `repo`, for a recipe without an adapter.
    """
    if recipe.lora is None:
        raise RecipeError([Problem(repo, "is not an adapter, but already a whole model.")])
    return replace(
        recipe,
        task=recipe.task.merged(),
        lora=None,
        quantization=None,
        output_dir=None,
        push_to=None,
        public=False,
    )


def write_merged(
    loaded: LoadedResult, whole: Recipe, folder: Path, stage: Path, *, repo: str
) -> None:
    """Merge the adapter of `folder` into its base, and write a whole result to `stage`.

    The adapter's layers are removed from `loaded.model`. Raise RecipeError where the files of
    `repo` are no longer those that were loaded.
    """
    model = loaded.model.merge_and_unload()
    model.config.use_cache = True
    model.save_pretrained(stage)
    with consistent_read(folder, repo) as sidecar:
        if sidecar != loaded.sidecar:
            raise RecipeError([Problem(repo, "was replaced while it was merged.")])
        copy_rest(folder, stage)
    (stage / "recipe.json").write_text(whole.to_json(), encoding="utf-8")
    merged = {
        "task": type(whole.task).__name__,
        "base": None,
        "merged": origin(loaded, repo),
    }
    write_manifest(stage, loaded.sidecar | merged)


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two models' logits.

    Raise RuntimeError where it is not rounding, but another model's.
    """
    apart = (found - expected).abs().max().item()
    if not apart <= 1e-3 * max(1.0, expected.abs().max().item()):
        raise RuntimeError(f"the merged model gives other logits, by {apart:.3g}.")
    return apart


def rows_of_run(loaded: LoadedResult) -> Examples | None:
    """Return the rows that the adapter was scored on, or None if they are not on this machine."""
    task = loaded.recipe.task
    try:
        store = Store()
        raw = load_prepared(task.dataset, store)
        rows = check_prepared(task, raw, None, store)[0].reported
    except DataError:
        return None
    same = rows.fingerprint() == reported_rows_sha256(loaded.sidecar)
    return rows if same else None


def some_inputs(loaded: LoadedResult, rows: Examples | None) -> dict[str, torch.Tensor]:
    """Return a batch of the first rows, or of random tokens."""
    task, model = loaded.recipe.task, loaded.model
    if rows is None:
        generator = torch.Generator().manual_seed(0)
        size = (4, min(32, loaded.tokenizer.model_max_length))
        ids = torch.randint(model.config.vocab_size, size, generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    few = replace(rows, rows=list(islice(rows.rows, 8)))
    given = task.features(few, loaded.tokenizer, loaded.labels, training=False)
    batch = task.collate(int(loaded.tokenizer.pad_token_id or 0))(given.dataset[:8])
    return {name: value for name, value in batch.items() if name != "labels"}


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of a batch as a vector on the CPU, without those of padding."""
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    with torch.inference_mode():
        outputs = model(**inputs)
    logits = [value.float().cpu() for name, value in outputs.items() if name.endswith("logits")]
    mask = batch.get("attention_mask")
    if mask is not None and logits[0].shape[:2] == mask.shape:  # of tokens, and not of rows
        logits = [value[mask.bool()] for value in logits]
    return torch.cat([value.flatten() for value in logits])


def origin(loaded: LoadedResult, repo: str) -> dict[str, Any]:
    """Return what a merged model was merged from, without paths of this machine."""
    recipe, recorded = loaded.recipe, loaded.sidecar["base"]
    return {
        "adapter": public_name(explicit(repo)),
        "adapter_sha256": loaded.sha256,
        "base": recorded | {"name_or_path": public_name(recorded["name_or_path"])},
        "lora": to_json_value(recipe.lora),
        "quantization": to_json_value(recipe.quantization),
        "score_of": "adapter",
    }


def with_own_score(merged: LoadedResult, rows: Examples) -> dict[str, Any]:
    """Return the sidecar of a merged model with its own score, and the adapter's next to it."""
    of_adapter, metrics = merged.metrics, score_result(merged, rows)
    primary = of_adapter["primary"]
    unchanged = {name: of_adapter[name] for name in ("baseline", "seconds") if name in of_adapter}
    if metrics["primary"] != primary:  # the baseline is of another score
        unchanged.pop("baseline", None)
    scores = {
        "score_of": "merged",
        "adapter_metric": primary,
        "adapter_score": of_adapter[primary],
    }
    of_one = {name: value for name, value in merged.sidecar.items() if name != "seeds"}
    return of_one | {
        "merged": merged.sidecar["merged"] | scores,
        "metrics": metrics | unchanged,
    }


def copy_rest(folder: Path, stage: Path) -> None:
    """Copy the files of a result other than its weights: the tokenizer and the loss curve."""
    for file in sorted(folder.iterdir()):
        listed = any(fnmatch(file.name, pattern) for pattern in FILES)
        if file.is_file() and listed and not any(fnmatch(file.name, p) for p in NOT_COPIED):
            shutil.copyfile(file, stage / file.name)


def print_merged(loaded: LoadedResult, merged: Merged, out: Path) -> None:
    """Print how far the logits moved, and the score."""
    lines = [
        f"merged: {out}",
        f"  logits up to {merged.of:.3g} moved by {merged.moved:.1e} from the adapter's on the "
        "base in full precision",
    ]
    if merged.moved_from_quantized is not None:
        moved = f"{merged.moved_from_quantized:.1e}"
        lines.append(f"  and by {moved} from those on the base as it was trained on")
    for line in lines:
        say(line)
    sidecar = json.loads((out / "task.json").read_text(encoding="utf-8"))
    print_score(loaded.recipe.name, sidecar["metrics"])
    source = sidecar["merged"]
    if source["score_of"] == "merged":
        say(f"  the adapter's {source['adapter_metric']} was {source['adapter_score']:.4f}")
    else:
        say("  this is the adapter's score: the rows of the run are not here, or not scored again")
