"""Export a result: check what is wanted, write it, compare it with the original, describe it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.console import say
from pipelines.exporting.card import example_prompt, export_card
from pipelines.exporting.formats import FORMATS, FormatName, check_export, check_task
from pipelines.exporting.gguf_file import Origin, write_gguf
from pipelines.exporting.onnx_file import folder_size, write_int8, write_onnx
from pipelines.exporting.onnx_model import (
    Difference,
    OnnxModel,
    check_equal,
    compare,
    reads_of,
    score_head,
)
from pipelines.hub.load import LoadedResult, load_result
from pipelines.hub.result_folder import result_folder
from pipelines.inference.merge import merge, rows_of_run, some_inputs
from pipelines.process import quiet_libraries
from pipelines.recipe.names import is_hub_id
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.results.disk import megabytes
from pipelines.results.names import explicit, public_name
from pipelines.results.new_folder import new_folder
from pipelines.results.sidecar import tuned_options

RECORD = "export.json"
ONNX = "model.onnx"


@dataclass(frozen=True)
class Written:
    """A written file, how it was checked, and the lines that say so."""

    file: str
    checks: dict[str, Any]
    lines: list[str]


@quiet_libraries()
def export(
    repo: str | Path,
    out: str | Path,
    *,
    to: FormatName,
    quantize: str | None = None,
    revision: str | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """Write a result to the folder `out` in a format, after comparing the file with the model.

    An adapter is merged into its base in full precision. `quantize` is a precision of the weights
    that the format has; safetensors is what `merge` writes. Return what export.json has.

    Raise RecipeError for what the format cannot hold and for an `out` that is not empty;
    ExportError where what was written is not the model; and CheckpointError for files that cannot
    be written. Then nothing is left in `out`.
    """
    out = Path(out)
    precision = check_export(out, to, quantize)
    if to == "safetensors":
        merge(repo, out, revision=revision, base=base)
        return {}
    folder = result_folder(repo, revision)
    check_task(to, Recipe.from_json((folder / "recipe.json").read_text(encoding="utf-8")).task)
    loaded = load_result(folder, base=base, precision="fp32", device="cpu")
    name = public_name(explicit(str(repo)))
    with new_folder(out) as stage:
        written = WRITERS[to](loaded, stage, precision, name)
        record = describe(loaded, written, to=to, precision=precision, name=name)
        (stage / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        card = export_card(loaded, record, license_id=loaded.recipe.license)
        (stage / "README.md").write_text(card, encoding="utf-8")
        size = folder_size(stage)
    head = [f"exported: {out}", f"  {megabytes(size)}, the model in {written.file}"]
    for line in [*head, *written.lines]:
        say(line)
    return record


def whole_model(loaded: LoadedResult) -> Any:
    """Return the model, with an adapter merged into it."""
    return loaded.model if loaded.recipe.lora is None else loaded.model.merge_and_unload()


def export_gguf(loaded: LoadedResult, stage: Path, precision: str, name: str) -> Written:
    """Write a language model as GGUF."""
    recipe = loaded.recipe
    file = stage / f"{recipe.name}-{precision}.gguf"
    origin = Origin(recipe.name, recipe.license, hub_base(recipe, name))
    error = write_gguf(whole_model(loaded), loaded.tokenizer, file, precision, origin)
    line = f"  read back: no weight is off by more than {error:.1e}"
    line = line if error else "  read back: every weight is exactly the model's"
    return Written(file.name, {"largest_error_of_a_weight": error}, [line])


def export_onnx(loaded: LoadedResult, stage: Path, precision: str, name: str) -> Written:
    """Write a model as ONNX, with its tokenizer and its configuration."""
    writes = loaded.recipe.task.head is None
    rows = rows_of_run(loaded)
    reads = reads_of(loaded.model, some_inputs(loaded, rows))
    model = whole_model(loaded)
    with tempfile.TemporaryDirectory(dir=stage) as unfinished:
        fp32 = (stage if precision == "fp32" else Path(unfinished)) / ONNX
        write_onnx(model, fp32, writes=writes)
        exact = compare(OnnxModel(fp32), reads)
        check_equal(exact)
        checks: dict[str, Any] = {"largest_difference": exact.largest, "largest_logit": exact.of}
        lines = [f"  logits {differ(exact)}"]
        if precision == "int8":
            write_int8(fp32, stage / ONNX)
            lines[0] += f" in fp32, {megabytes(folder_size(fp32.parent))}"
    if precision == "int8":
        rounded = OnnxModel(stage / ONNX)
        found = compare(rounded, reads)
        lines.append(f"  logits {differ(found)} in int8")
        checks["largest_difference_int8"] = found.largest
        if rows is not None and not writes:
            checks["int8"] = main_score(score_head(loaded, rounded, rows).as_metrics())
            lines.append(score_line(loaded, checks["int8"]))
    loaded.tokenizer.save_pretrained(stage)
    model.config.save_pretrained(stage)
    if writes:
        model.generation_config.save_pretrained(stage)
    return Written(ONNX, checks, lines)


def differ(difference: Difference) -> str:
    """Return how far logits are from the original's, as text."""
    return f"up to {difference.of:.3g} differ by at most {difference.largest:.1e} from the model's"


def main_score(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the primary metric, with its interval and its number of rows."""
    primary = metrics["primary"]
    return {
        "primary": primary,
        primary: float(metrics[primary]),
        "confidence_interval": [float(each) for each in metrics["confidence_interval"]],
        "rows": metrics["rows"],
    }


def score_line(loaded: LoadedResult, found: dict[str, Any]) -> str:
    """Return the score of a file with its interval, next to that of the run."""
    metric, (low, high) = found["primary"], found["confidence_interval"]
    own = loaded.metrics[loaded.metrics["primary"]]
    line = (
        f"  {metric} {found[metric]:.4f} (95 % {low:.4f} to {high:.4f}) on {found['rows']:,} rows"
    )
    return f"{line}; the run's {loaded.metrics['primary']} was {own:.4f}"


WRITERS: dict[FormatName, Callable[[LoadedResult, Path, str, str], Written]] = {
    "gguf": export_gguf,
    "onnx": export_onnx,
}


def hub_base(recipe: Recipe, name: str) -> str | None:
    """Return the repository on the Hub that a file was made from: the result, or its base."""
    if not name.startswith("./"):
        return name
    model = recipe.model
    return (
        model.name_or_path if isinstance(model, Model) and is_hub_id(model.name_or_path) else None
    )


def describe(
    loaded: LoadedResult, written: Written, *, to: FormatName, precision: str, name: str
) -> dict[str, Any]:
    """Return what a program needs to use the file, and where it is from."""
    tokenizer, sidecar = loaded.tokenizer, loaded.sidecar
    return {
        "format": to,
        "precision": precision,
        "file": written.file,
        "task": sidecar["task"],
        "labels": list(loaded.labels),
        **tuned_options(sidecar),
        "max_length": sidecar["max_length"],
        "pad_token_id": sidecar["pad_token_id"],
        "eos_token_id": tokenizer.eos_token_id,
        "prompt": example_prompt(loaded),
        "result": name,
        "result_sha256": loaded.sha256,
        "base": hub_base(loaded.recipe, name),
        "metrics": main_score(loaded.metrics),
        "checks": written.checks,
        "versions": {each: version(each) for each in ("transformers", *FORMATS[to].packages)},
    }
