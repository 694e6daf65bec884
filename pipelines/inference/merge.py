"""Merge an adapter into its base: an ordinary model, which needs neither peft nor this project."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from pipelines.console import console
from pipelines.data.load import load_splits
from pipelines.data.rows import Examples
from pipelines.data.splits import check_splits
from pipelines.errors import DataError, Problem, RecipeError
from pipelines.hub.destination import check_destination
from pipelines.hub.load import LoadedResult, load_result, result_folder
from pipelines.hub.publish import publish_finished
from pipelines.process import quiet_libraries
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import to_json_value
from pipelines.reporting.report import print_score
from pipelines.results.files import FILES, consistent_read, write_manifest
from pipelines.results.names import explicit, public_name
from pipelines.training.score import score_result

WEIGHTS = ("adapter*", "*.safetensors*", "config.json", "generation_config.json")
NOT_COPIED = (*WEIGHTS, "README.md", "recipe.json", "task.json")


@dataclass(frozen=True)
class Merged:
    """How far merging moved the logits; `of` is the largest of them.

    `moved` is against the adapter on the base in full precision, `moved_from_quantized` against the
    adapter on the base as it was trained on, where that was quantised.
    """

    moved: float
    moved_from_quantized: float | None
    of: float


@quiet_libraries()
def merge(
    repo: str | Path,
    out: Path,
    *,
    revision: str | None = None,
    base: str | None = None,
    publish_to: str | None = None,
    public: bool = False,
    rescore: bool = True,
) -> Merged:
    """Write the model that an adapter and its base make together, in full precision, to `out`.

    The result loads and evaluates as any other. It is scored on the rows of the run, unless they
    are not on this machine or `rescore` is False: its score is then the adapter's, and its card
    says so. Raise RecipeError for a result that is no adapter, and for an `out` that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError([Problem("OUT", f"{out} is not empty. Give another folder.")])
    folder = result_folder(repo, revision)
    recipe = Recipe.from_json((folder / "recipe.json").read_text(encoding="utf-8"))
    if recipe.lora is None:
        raise RecipeError([Problem(str(repo), "is no adapter, but a whole model already.")])
    plain_recipe = replace(
        recipe,
        task=recipe.task.merged(),
        lora=None,
        quantization=None,
        output_dir=None,
        push_to=None,
        public=False,
    )
    if publish_to:
        check_destination(plain_recipe, publish_to, public=public)
    loaded = load_result(folder, base=base, precision="fp32")
    rows = rows_of_run(loaded)
    batch = some_inputs(loaded, rows)
    logits = logits_of(loaded.model, batch)
    model = loaded.model.merge_and_unload()
    model.config.use_cache = True
    sidecar = loaded.sidecar | {
        "task": type(plain_recipe.task).__name__,
        "base": None,
        "merged": origin(loaded, recipe, str(repo)),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".merge-") as name:
        stage = Path(name) / "merged"
        model.save_pretrained(stage)
        with consistent_read(folder, str(repo)) as unchanged:
            if unchanged != loaded.sidecar:
                raise RecipeError([Problem(str(repo), "was replaced while it was merged.")])
            copy_rest(folder, stage)
        (stage / "recipe.json").write_text(plain_recipe.to_json(), encoding="utf-8")
        write_manifest(stage, sidecar)
        again = load_result(stage)
        moved = (logits_of(again.model, batch) - logits).abs().max().item()
        largest = logits.abs().max().item()
        if not moved <= 1e-3 * max(1.0, largest):
            raise RuntimeError(f"the merged model gives other logits, by {moved:.3g}.")
        if rows is not None and rescore:
            write_manifest(stage, scored_again(again, rows))
        os.replace(stage, out)
    from_quantized = None
    if recipe.quantization:
        trained = logits_of(load_result(folder, base=base).model, batch)
        from_quantized = (trained - logits).abs().max().item()
    merged = Merged(moved, from_quantized, largest)
    print_merged(loaded, merged, out)
    if publish_to:
        publish_finished(out, publish_to, public=public)
    return merged


def rows_of_run(loaded: LoadedResult) -> Examples | None:
    """Return the rows that the adapter was scored on, or None where they are not at hand."""
    task = loaded.recipe.task
    try:
        rows = check_splits(task, load_splits(task.dataset))[0].held_out
    except DataError:
        return None
    same = rows.fingerprint() == loaded.sidecar["dataset"]["eval_rows_sha256"]
    return rows if same else None


def some_inputs(loaded: LoadedResult, rows: Examples | None) -> dict[str, torch.Tensor]:
    """Return a batch of the first rows, or of random tokens."""
    task, model = loaded.recipe.task, loaded.model
    if rows is None:
        generator = torch.Generator().manual_seed(0)
        size = (4, min(32, loaded.tokenizer.model_max_length))
        ids = torch.randint(model.config.vocab_size, size, generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    few = replace(rows, rows=list(rows.rows)[:8])
    given = task.features(few, loaded.tokenizer, loaded.labels, training=False)
    batch = task.collate(int(loaded.tokenizer.pad_token_id or 0))(given.dataset[:8])
    return {name: value for name, value in batch.items() if name != "labels"}


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of a batch, on the CPU, those of padding left out."""
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    with torch.inference_mode():
        outputs = model(**inputs)
    found = [value.float().cpu() for name, value in outputs.items() if name.endswith("logits")]
    mask = batch.get("attention_mask")
    by_token = mask is not None and found[0].shape[:2] == mask.shape
    if by_token and mask is not None:
        found = [value[mask.bool()] for value in found]
    return torch.cat([value.flatten() for value in found])


def origin(loaded: LoadedResult, recipe: Recipe, repo: str) -> dict[str, Any]:
    """Return what a merged model was merged from, without paths of this machine."""
    recorded = loaded.sidecar["base"]
    return {
        "adapter": public_name(explicit(repo)),
        "adapter_sha256": loaded.sha256,
        "base": recorded | {"name_or_path": public_name(recorded["name_or_path"])},
        "lora": to_json_value(recipe.lora),
        "quantization": to_json_value(recipe.quantization),
        "score_of": "adapter",
    }


def scored_again(merged: LoadedResult, rows: Examples) -> dict[str, Any]:
    """Return the sidecar with the merged model's own score; the adapter's stands beside it."""
    before, found = merged.metrics, score_result(merged, rows)
    primary = before["primary"]
    kept = {name: before[name] for name in ("baseline", "seconds") if name in before}
    if found["primary"] != primary:  # the baseline is of another score
        kept.pop("baseline", None)
    scores = {
        "score_of": "merged",
        "adapter_metric": primary,
        "adapter_score": before[primary],
    }
    return merged.sidecar | {
        "merged": merged.sidecar["merged"] | scores,
        "metrics": found | kept,
    }


def copy_rest(folder: Path, stage: Path) -> None:
    """Copy what a result holds beside its weights: the tokenizer and the curve."""
    for file in sorted(folder.iterdir()):
        listed = any(fnmatch(file.name, pattern) for pattern in FILES)
        if file.is_file() and listed and not any(fnmatch(file.name, p) for p in NOT_COPIED):
            shutil.copyfile(file, stage / file.name)


def print_merged(loaded: LoadedResult, merged: Merged, out: Path) -> None:
    """Say how far the logits moved, and the score."""
    lines = [
        f"merged: {out}",
        f"  logits up to {merged.of:.3g} moved by {merged.moved:.1e} from the adapter's on the "
        "base in full precision",
    ]
    if merged.moved_from_quantized is not None:
        lines.append(
            f"  and by {merged.moved_from_quantized:.1e} from those on the base as it was trained "
            "on"
        )
    for line in lines:
        console().print(line, markup=False)
    sidecar = json.loads((out / "task.json").read_text(encoding="utf-8"))
    print_score(loaded.recipe.name, sidecar["metrics"])
    said = "  this is the adapter's score: the rows of the run are not at hand, or not asked for"
    origin = sidecar["merged"]
    if origin["score_of"] == "merged":
        said = f"  the adapter's {origin['adapter_metric']} was {origin['adapter_score']:.4f}"
    console().print(said, markup=False)
