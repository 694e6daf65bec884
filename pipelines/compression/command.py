"""Compress a result: prune it, train what is left for a short time, store it in fewer bits."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipelines.compression.keep_zeros import KeepZeros
from pipelines.compression.measure import Measured, measure, rows_missing
from pipelines.compression.options import Compression
from pipelines.compression.recovery import recovery
from pipelines.compression.score import score_again
from pipelines.compression.table import print_table
from pipelines.console import say
from pipelines.errors import DataError, Problem, RecipeError
from pipelines.finished import try_to_report
from pipelines.flow import run
from pipelines.hub.load import LoadedResult, load_result
from pipelines.hub.pin import pin_result
from pipelines.hub.result_folder import result_folder
from pipelines.hub_client.client import Hub
from pipelines.inference.merge import copy_rest, rows_of_run, whole_recipe, write_merged
from pipelines.models.pruning import check_prunable, pruned, sparsify
from pipelines.process import quiet_libraries
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Distillation, Model
from pipelines.reporting.run_files import SAMPLES
from pipelines.results.files import read_manifest, update_manifest, write_manifest
from pipelines.results.names import public_name
from pipelines.results.new_folder import check_new, removed_on_error
from pipelines.results.sidecar import read_sidecar, stored_bits


@quiet_libraries()
def compress(
    repo: str | Path,
    out: str | Path,
    compression: Compression,
    *,
    revision: str | None = None,
    base: str | None = None,
) -> dict[str, Measured]:
    """Compress a result and write it to `out`; return what it was "before" and is "after".

    An adapter is merged first. What the validation rows decide, such as thresholds of labels, they
    decide again. The result loads, evaluates and publishes as any other; its card says what was
    done, and what the model was before.

    Raise RecipeError for an `out` that is not empty, for another architecture, for fractions that
    leave nothing and for a training that cannot be, DataError where the rows of the run are not on
    this machine, and CheckpointError for files that cannot be written. Then nothing is left in
    `out`.
    """
    out = Path(out)
    check_new(out)
    origin = pinned(str(repo), revision)
    folder = result_folder(repo, origin.revision)
    loaded = load_compressible(folder, str(repo), base, compression)
    whole = own_recipe(folder, str(repo))
    final = whole
    if compression.recover_steps is not None:
        final = recovery(whole, origin, compression)
    with removed_on_error(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".compress-") as name:
            source = folder
            if loaded.recipe.lora is not None:
                source = Path(name) / "whole"
                write_merged(loaded, whole, folder, source, repo=str(repo))
            small = Path(name) / "small"
            write_pruned(load_result(source), source, small, compression)
            before = measure(source)
            finish(small, source, out, final, compression)
        after = measure_and_record(out, record_of(loaded, origin, compression), before)
        try_to_report(out)
    say(f"compressed: {out}")
    found = {"before": before, "after": after}
    print_table(found)
    return found


def pinned(repo: str, revision: str | None) -> Model:
    """Return the explicit path, or the Hub id and the commit, of a result.

    Raise RecipeError for a repository that does not exist.
    """
    problems: list[Problem] = []
    name, commit = pin_result(Hub(), repo, revision, path=repo, problems=problems)
    if problems:
        raise RecipeError(problems)
    return Model(name_or_path=name, revision=commit)


def load_compressible(
    folder: Path, repo: str, base: str | None, compression: Compression
) -> LoadedResult:
    """Load a result in full precision.

    Raise RecipeError for one that cannot be compressed so, DataError where its rows are not here.
    """
    check_floats(folder, repo)
    loaded = load_result(folder, base=base, precision="fp32")
    if compression.shrinks:
        fractions = {"heads": compression.prune_heads, "neurons": compression.prune_neurons}
        check_prunable(loaded.model.config, **fractions)
    if rows_of_run(loaded) is None:
        raise DataError(rows_missing(loaded))
    return loaded


def own_recipe(folder: Path, repo: str) -> Recipe:
    """Return the recipe of a result, or of its adapter when merged, without a destination."""
    recipe = Recipe.from_file(folder / "recipe.json")
    if recipe.lora is not None:
        return whole_recipe(recipe, repo=repo)
    return replace(recipe, output_dir=None, push_to=None, public=False)


def record_of(loaded: LoadedResult, origin: Model, compression: Compression) -> dict[str, Any]:
    """Return what was done, for task.json."""
    return {
        "source": public_name(origin.name_or_path),
        "source_revision": origin.revision,
        "source_sha256": loaded.sha256,
        **asdict(compression),
    }


def measure_and_record(out: Path, record: dict[str, Any], before: Measured) -> Measured:
    """Store the weights in few bits if asked, and measure; write to task.json what was done."""
    record = record | {"before": asdict(before), "after": asdict(before)}
    update_manifest(out, {"compressed": record})
    if record["bits"] is not None:
        store_in_bits(out, record["bits"])
    after = measure(out)
    update_manifest(out, {"compressed": record | {"after": asdict(after)}})
    return after


def check_floats(folder: Path, repo: str) -> None:
    """Raise RecipeError for a result whose weights are stored in few bits already."""
    bits = stored_bits(read_sidecar(folder / "task.json"))
    if bits is not None:
        text = f"is stored in {bits} bits already. Compress the result that it was made from."
        raise RecipeError([Problem(repo, text)])


def store_in_bits(out: Path, bits: int) -> None:
    """Replace the weights of a result by 8-bit or 4-bit ones, and score them."""
    sidecar = read_manifest(out)
    update_manifest(out, {"compressed": sidecar["compressed"] | {"bits": None}})
    precision: Any = f"{bits}bit"
    model = load_result(out, precision=precision).model
    with tempfile.TemporaryDirectory(dir=out) as name:
        model.save_pretrained(name)
        for file in [*out.glob("*.safetensors*"), out / "config.json"]:
            file.unlink()
        for file in Path(name).iterdir():
            file.replace(out / file.name)
    (out / SAMPLES).unlink(missing_ok=True)  # of the weights before
    write_manifest(out, sidecar)
    score_again(out)


def write_pruned(loaded: LoadedResult, source: Path, small: Path, compression: Compression) -> None:
    """Write a result with the model pruned, and the score of the one before."""
    model: Any = loaded.model
    if compression.shrinks:
        model = pruned(model, heads=compression.prune_heads, neurons=compression.prune_neurons)
    if compression.sparsity is not None:
        sparsify(model, compression.sparsity)
    model.config.use_cache = True
    model.save_pretrained(small)
    copy_rest(source, small)
    shutil.copyfile(source / "recipe.json", small / "recipe.json")
    of_source = ("merged", "seeds", "kept")
    kept = {name: value for name, value in loaded.sidecar.items() if name not in of_source}
    write_manifest(small, kept | {"base": None})


def finish(small: Path, source: Path, out: Path, final: Recipe, compression: Compression) -> None:
    """Write the result to `out`: trained again, or as it was pruned, with its own score."""
    if compression.recover_steps is None:
        write_recipe(small, final)
        score_again(small)
        if out.exists():
            out.rmdir()
        small.replace(out)
        return
    teacher = final.distillation and Distillation(teacher=str(source))
    started = replace(final, model=Model(name_or_path=str(small)), distillation=teacher)
    run(replace(started, output_dir=str(out)), [KeepZeros()] if compression.sparsity else [])
    write_recipe(out, final)


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Replace the recipe of a result, which is not of the folders that a training of it read."""
    (folder / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
    sidecar = read_manifest(folder)
    sidecar.pop("sha256_of", None)
    write_manifest(folder, sidecar)
