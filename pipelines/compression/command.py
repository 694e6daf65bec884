"""Compress a result: prune it, train what is left for a short time, store it in fewer bits."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.compression.keep_zeros import KeepZeros
from pipelines.compression.measure import Measured, measure, rows_missing
from pipelines.compression.table import print_table
from pipelines.console import say
from pipelines.errors import DataError, Problem, RecipeError
from pipelines.flow import run
from pipelines.hub.load import LoadedResult, load_result
from pipelines.hub.result_folder import result_folder
from pipelines.inference.merge import copy_rest, rows_of_run, whole_recipe, write_merged
from pipelines.models.pruning import check_prunable, pruned, sparsify
from pipelines.process import quiet_libraries
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Distillation, Model
from pipelines.results.files import write_manifest
from pipelines.results.names import explicit, public_name
from pipelines.results.new_folder import check_new
from pipelines.results.sidecar import read_sidecar, stored_bits
from pipelines.training.score import score_result


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What is done to a model, in this order."""

    prune_heads: float | None = None
    """Fraction of the attention heads of each layer, with as much of the width."""
    prune_neurons: float | None = None
    """Fraction of the neurons of each layer."""
    sparsity: float | None = None
    """Fraction of the weights inside the blocks that are set to zero."""
    recover_steps: int | None = None
    """Steps of training afterwards, on the rows of the run."""
    recover_learning_rate: float | None = None
    """Peak learning rate of it; the recipe's own if not given."""
    distill: bool = False
    """Train towards the model before compression, next to the labels."""
    bits: Literal[8, 4] | None = None
    """Bits of a stored weight inside the blocks, by bitsandbytes."""

    def __post_init__(self) -> None:
        if problems := list(self.problems()):
            raise RecipeError(problems)

    @property
    def shrinks(self) -> bool:
        """Tell whether the model gets another shape."""
        return self.prune_heads is not None or self.prune_neurons is not None

    @property
    def prunes(self) -> bool:
        """Tell whether weights are removed or set to zero."""
        return self.shrinks or self.sparsity is not None

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be done."""
        for name in ("prune_heads", "prune_neurons", "sparsity"):
            fraction = getattr(self, name)
            if fraction is not None and not 0 < fraction < 1:
                yield Problem(name, f"{fraction:g} is no fraction. Give a number between 0 and 1.")
        if not self.prunes and self.bits is None:
            text = "nothing to do. Give --prune-heads, --prune-neurons, --sparsity or --bits."
            yield Problem("compress", text)
        if self.recover_steps is not None and self.recover_steps < 1:
            yield Problem("recover_steps", f"{self.recover_steps} is below 1.")
        if self.recover_steps is not None and not self.prunes:
            yield Problem("recover_steps", "is the training after pruning, and nothing is pruned.")
        if self.recover_steps is None:
            for name in ("distill", "recover_learning_rate"):
                if getattr(self, name):
                    yield Problem(name, "is of the training afterwards. Give --recover-steps.")


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

    An adapter is merged first. The result loads, evaluates and publishes as any other; its card
    says what was done, and what the model was before.

    Raise RecipeError for an `out` that is not empty, for another architecture and for fractions
    that leave nothing, and DataError where the rows of the run are not on this machine.
    """
    out = Path(out)
    check_new(out)
    folder = result_folder(repo, revision)
    loaded = load_compressible(folder, str(repo), base, compression)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".compress-") as name:
        source = whole_result(loaded, folder, Path(name) / "whole", str(repo))
        small = Path(name) / "small"
        write_pruned(load_result(source), source, small, compression)
        before = measure(source)
        with removed_on_error(out):
            finish(small, source, out, compression)
            origin = public_name(explicit(str(repo)))
            name_source(out, origin)
            record = {"source": origin, "source_sha256": loaded.sha256, **asdict(compression)}
            after = measure_and_record(out, record, before)
    say(f"compressed: {out}")
    found = {"before": before, "after": after}
    print_table(found)
    return found


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


def measure_and_record(out: Path, record: dict[str, Any], before: Measured) -> Measured:
    """Store the weights in few bits if asked, and measure; write to task.json what was done."""
    record = record | {"before": asdict(before), "after": asdict(before)}
    add_record(out, record)
    if record["bits"] is not None:
        store_in_bits(out, record["bits"])
    after = measure(out)
    add_record(out, record | {"after": asdict(after)})
    return after


def whole_result(loaded: LoadedResult, folder: Path, stage: Path, repo: str) -> Path:
    """Return the folder of a whole model: that of the result, or `stage`, where it is merged."""
    if loaded.recipe.lora is None:
        return folder
    write_merged(loaded, whole_recipe(loaded.recipe, repo=repo), folder, stage, repo=repo)
    return stage


def check_floats(folder: Path, repo: str) -> None:
    """Raise RecipeError for a result whose weights are stored in few bits already."""
    bits = stored_bits(read_sidecar(folder / "task.json"))
    if bits is not None:
        text = f"is stored in {bits} bits already. Compress the result that it was made from."
        raise RecipeError([Problem(repo, text)])


def store_in_bits(out: Path, bits: int) -> None:
    """Replace the weights of a result by 8-bit or 4-bit ones, and score them."""
    sidecar = json.loads((out / "task.json").read_text(encoding="utf-8"))
    whole = {**sidecar, "compressed": sidecar["compressed"] | {"bits": None}}
    write_manifest(out, whole)
    precision: Any = f"{bits}bit"
    model = load_result(out, precision=precision).model
    with tempfile.TemporaryDirectory(dir=out) as name:
        model.save_pretrained(name)
        for file in [*out.glob("*.safetensors*"), out / "config.json"]:
            file.unlink()
        for file in Path(name).iterdir():
            file.replace(out / file.name)
    write_manifest(out, sidecar)
    write_manifest(out, with_own_score(load_result(out)))


@contextmanager
def removed_on_error(out: Path) -> Iterator[None]:
    """Delete a folder that is written inside, unless it is finished."""
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


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
    recipe = replace(loaded.recipe, output_dir=None, model=Model(name_or_path=str(source)))
    (small / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
    of_source = ("merged", "seeds", "kept")
    kept = {name: value for name, value in loaded.sidecar.items() if name not in of_source}
    write_manifest(small, kept | {"base": None})


def finish(small: Path, source: Path, out: Path, compression: Compression) -> None:
    """Write the result to `out`: trained again, or as it was pruned, with its own score."""
    if compression.recover_steps is None:
        write_manifest(small, with_own_score(load_result(small)))
        if out.exists():
            out.rmdir()
        small.replace(out)
        return
    recipe = recovery(Recipe.from_file(small / "recipe.json"), small, source, out, compression)
    run(recipe, [KeepZeros()] if compression.sparsity else [])


def with_own_score(loaded: LoadedResult) -> dict[str, Any]:
    """Return the sidecar of a result with the score of its model as it is."""
    rows = rows_of_run(loaded)
    assert rows is not None
    kept = {
        name: loaded.metrics[name] for name in ("baseline", "seconds") if name in loaded.metrics
    }
    return loaded.sidecar | {"metrics": score_result(loaded, rows) | kept}


def name_source(out: Path, origin: str) -> None:
    """Let the recipe of a result name what was compressed, in place of folders that are gone."""
    recipe = Recipe.from_file(out / "recipe.json")
    teacher = recipe.distillation and replace(recipe.distillation, teacher=origin)
    model = Model(name_or_path=origin)
    named = replace(recipe, model=model, distillation=teacher, output_dir=None)
    (out / "recipe.json").write_text(named.to_json(), encoding="utf-8")


def add_record(out: Path, record: dict[str, Any]) -> None:
    """Write to task.json what was done, and what came of it."""
    sidecar = json.loads((out / "task.json").read_text(encoding="utf-8"))
    write_manifest(out, sidecar | {"compressed": record})


def recovery(
    recipe: Recipe, small: Path, source: Path, out: Path, compression: Compression
) -> Recipe:
    """Return the recipe of the training afterwards."""
    rate = compression.recover_learning_rate or recipe.train.learning_rate
    train = replace(recipe.train, max_steps=compression.recover_steps, learning_rate=rate)
    teacher = Distillation(teacher=str(source)) if compression.distill else None
    model = Model(name_or_path=str(small))
    return replace(recipe, model=model, train=train, distillation=teacher, output_dir=str(out))
