"""task.json, the sidecar of a result: its fields, checked when read. Imports no torch."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, Union, is_typeddict

from annotated_types import Ge

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.schema import from_json_value, shortened, wrong_value
from pipelines.recipe.values import NF4, Int8, Lora
from pipelines.tasks.label_values import wrong_thresholds

TUNED = ("thresholds",)
"""Options of tasks (`Task.tunes`) that task.json has, and recipe.json has not."""
Count = Annotated[int, Ge(0)]
Size = Annotated[int, Ge(1)]


class BaseRecord(TypedDict):
    """The base of an adapter."""

    name_or_path: str
    revision: str | None
    sha256: NotRequired[str | None]
    hidden_size: Size
    num_hidden_layers: Size
    vocab_size: Size


class ScoredRows(TypedDict):
    """The rows of each split; `splits` tells how they were drawn, and which are reported."""

    path: str
    name: str | None
    revision: str | None
    train_rows_sha256: str | None
    eval_rows_sha256: str
    test_rows_sha256: NotRequired[str]
    splits: dict[str, Any]


class Metrics(TypedDict):
    """Metrics of the run; the value of `primary` is under its own name."""

    primary: str
    confidence_interval: list[float]
    rows: Count
    rows_skipped: NotRequired[Count]
    loss: NotRequired[float]
    predicted_tokens: NotRequired[Count]
    seconds: NotRequired[float]
    baseline: NotRequired[dict[str, float]]
    f1_per_class: NotRequired[dict[str, float]]
    precision_per_class: NotRequired[dict[str, float]]
    recall_per_class: NotRequired[dict[str, float]]
    support_per_class: NotRequired[dict[str, int]]
    validation: NotRequired[dict[str, Any]]


class KeptRecord(TypedDict):
    """Which weights a result has, where they were chosen by the validation rows."""

    keep: Literal["last", "best"]
    step: Count
    last_step: Count
    planned_steps: Count
    metric: str
    best: float | None


class MergeRecord(TypedDict):
    """What a merged model was merged from."""

    adapter: str
    adapter_sha256: str
    base: BaseRecord
    lora: dict[str, Any]
    quantization: dict[str, Any] | None
    score_of: str
    adapter_metric: NotRequired[str]
    adapter_score: NotRequired[float]


class Measurement(TypedDict):
    """Weights on disk and peak memory of a process in megabytes, speed in `unit`, and score."""

    size_mb: float
    memory_mb: float
    speed: float
    unit: str
    metric: str
    score: float
    interval: list[float]


class CompressionRecord(TypedDict):
    """How a model was made smaller, and what it was before and is after."""

    source: str
    source_revision: NotRequired[str | None]
    source_sha256: str
    prune_heads: float | None
    prune_neurons: float | None
    sparsity: float | None
    recover_steps: int | None
    recover_learning_rate: NotRequired[float | None]
    distill: bool
    bits: int | None
    before: Measurement
    after: Measurement


class SeedsRecord(TypedDict):
    """The primary metric of the recipe for several seeds, of which the result has one."""

    values: dict[str, float]
    mean: float
    standard_deviation: float
    interval: list[float]


class Sidecar(TypedDict):
    """What is needed to use a result, and how its score was computed.

    Fields that are not listed here are of a later version, and are ignored.
    """

    task: str
    labels: list[str]
    thresholds: NotRequired[dict[str, float]]
    pad_token_id: Count
    max_length: Size
    base: BaseRecord | None
    dataset: ScoredRows
    sha256_of: NotRequired[dict[str, str | None]]
    hardware: str
    versions: dict[str, str]
    metrics: Metrics
    timing: NotRequired[dict[str, float]]
    kept: NotRequired[KeptRecord]
    merged: NotRequired[MergeRecord]
    compressed: NotRequired[CompressionRecord]
    seeds: NotRequired[SeedsRecord]
    run: str
    changed_on_resume: list[dict[str, Any]]
    files: dict[str, Any]


def stored_bits(sidecar: dict[str, Any]) -> int | None:
    """Return the bits in which the weights of a whole model are stored, or None for floats."""
    bits: int | None = sidecar.get("compressed", {}).get("bits")
    return bits


def tuned_options(sidecar: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the task that the run decided by its validation rows, by name."""
    return {name: sidecar[name] for name in TUNED if name in sidecar}


def read_json(file: Path, *, limit: int) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes. Raise RecipeError that names the file."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("a field is duplicated")
        return fields

    size = file.stat().st_size
    if size > limit:
        raise file_error(file.name, f"has {size:,} bytes; at most {limit:,} are read.")
    try:
        value = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise file_error(file.name, f"is not JSON: {shortened(str(error))}") from None
    if not isinstance(value, dict):
        raise file_error(file.name, "is not a JSON object.")
    return value


def read_sidecar(file: Path) -> dict[str, Any]:
    """Read a task.json. Raise RecipeError with every field of the wrong type."""
    value = read_json(file, limit=1 << 26)
    problems = list(field_problems(value, Sidecar, "")) or list(value_problems(value))
    if problems:
        lines = [f"{p.path}: {shortened(p.message)}" for p in problems]
        raise RecipeError([Problem(file.name, line) for line in lines])
    return value


def field_problems(value: Any, hint: Any, path: str) -> Iterator[Problem]:
    """Yield the fields that are missing or of the wrong type, inside objects too."""
    kinds = [hint]
    if typing.get_origin(hint) in (Union, types.UnionType):
        kinds = list(typing.get_args(hint))
    objects = [kind for kind in kinds if is_typeddict(kind)]
    if not objects or (value is None and type(None) in kinds):
        yield from wrong_value(value, hint, path)
        return
    if not isinstance(value, dict):
        yield Problem(path, f"{shortened(repr(value))} is not an object.")
        return
    hints = typing.get_type_hints(objects[0], include_extras=True)
    for name, field in hints.items():
        optional = typing.get_origin(field) is NotRequired
        if name in value:
            inner = typing.get_args(field)[0] if optional else field
            yield from field_problems(value[name], inner, f"{path}.{name}".lstrip("."))
        elif not optional:
            yield Problem(f"{path}.{name}".lstrip("."), "is missing.")


def value_problems(sidecar: dict[str, Any]) -> Iterator[Problem]:
    """Yield the values that are wrong though their types are right."""
    labels, metrics = sidecar["labels"], sidecar["metrics"]
    duplicated = sorted({label for label in labels if labels.count(label) > 1})
    if duplicated:
        yield Problem("labels", f"{duplicated[0]!r} is duplicated.")
    if "thresholds" in sidecar:
        if sidecar["thresholds"].keys() != set(labels):
            yield Problem("thresholds", "are of other labels.")
        for text in wrong_thresholds(sidecar["thresholds"]):
            yield Problem("thresholds", text)
    if unreadable := [label for label in labels if not is_utf8(label)]:
        yield Problem("labels", f"{unreadable[0]!r} is not UTF-8.")
    score = metrics.get(metrics["primary"])
    if isinstance(score, bool) or not isinstance(score, int | float):
        yield Problem("metrics", f"its primary metric {metrics['primary']!r} is not a number.")
    elif not math.isfinite(score):
        yield Problem("metrics", f"its {metrics['primary']} is {score}.")
    if len(metrics["confidence_interval"]) != 2:
        yield Problem("metrics.confidence_interval", "is not a pair of numbers.")
    yield from split_problems(sidecar["dataset"])
    if merged := sidecar.get("merged"):
        problems: list[Problem] = []
        from_json_value(Lora, merged["lora"], "merged.lora", problems)
        from_json_value(Int8 | NF4 | None, merged["quantization"], "merged.quantization", problems)
        yield from problems


def split_problems(dataset: dict[str, Any]) -> Iterator[Problem]:
    """Yield the splits that are not described, and a reported one that has no rows."""
    splits = dataset["splits"]
    for name in ("eval", "test"):
        if not isinstance(splits.get(name, {}), dict):
            yield Problem(f"dataset.splits.{name}", "is not an object.")
    reported = splits.get("reported", "eval")
    if reported not in ("eval", "test") or f"{reported}_rows_sha256" not in dataset:
        yield Problem("dataset.splits.reported", f"{reported!r} is no split with rows.")


def reported_rows_sha256(sidecar: dict[str, Any]) -> str:
    """Return the fingerprint of the rows that the reported score is of."""
    dataset = sidecar["dataset"]
    reported = dataset.get("splits", {}).get("reported", "eval")
    return str(dataset[f"{reported}_rows_sha256"])


def is_utf8(text: str) -> bool:
    """Tell whether a text can be encoded: it has no half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def file_error(file: str, message: str) -> RecipeError:
    """Return the error of one file of a result."""
    return RecipeError([Problem(file, message)])


def is_list_of_strings(value: Any) -> bool:
    """Tell whether a value is a list or a set of strings."""
    return isinstance(value, list | set) and all(isinstance(each, str) for each in value)
