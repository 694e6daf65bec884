"""Read rows of the data that a recipe is for, and find the splits in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pipelines.data.hub_datasets import class_labels, first_rows_of_hub
from pipelines.data.local_files import (
    data_files,
    has_split,
    is_local,
    local_path,
    split_files,
)
from pipelines.data.readers import describe_format, features_of, read_files, suffix_of
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.data.stream import origin_of
from pipelines.data.validate import to_examples
from pipelines.errors import DataError, Problem, RecipeError
from pipelines.paths import names_in, nearest_path
from pipelines.recipe.rules import REPO_ID

MOST_ROWS = 200_000  # rows that are read; a larger file is guessed from them
FORMATS = {".csv": "CSV", ".tsv": "TSV", ".jsonl": "JSON lines", ".json": "JSON", ".txt": "text"}
SPLITS = {
    "train": ("train", "training"),
    "eval": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Names of the files of each split, the first one that is there."""


@dataclass(frozen=True)
class Look:
    """What was seen of the data; `examples` is None where they were not read."""

    source: DatasetSource
    examples: Examples | None
    num_rows: int
    """Rows that were read."""
    is_whole: bool
    """Whether these are all training rows."""
    description: str
    splits: str
    """Where the rows of the score come from, in a sentence."""

    @property
    def rows(self) -> Sequence[dict[str, object]]:
        """Return the rows that were read."""
        return () if self.examples is None else list(self.examples.rows)


def look_at(data: str, name: str | None, *, read_hub: bool) -> Look:
    """Read the training rows of a file, a folder or a Hub id, up to MOST_ROWS.

    A Hub id is read only where `read_hub`. Raise DataError for data without rows, and RecipeError
    for a name of neither.
    """
    source = DatasetSource(path=data, name=name)
    if "/" not in data and not Path(data).expanduser().exists():
        nearest = nearest_path(Path(data))
        hint = f"Did you mean {nearest}?" if nearest else "A Hub id has the form USER/NAME."
        raise RecipeError([Problem("data", f"{data}: no such file or folder. {hint}")])
    if not is_local(source):
        return look_at_hub(source, read=read_hub)
    if local_path(source).is_dir():
        source = with_splits(source)
    files = split_files(source, source.train_split)
    records = list(islice(read_files(files), MOST_ROWS + 1))
    examples = to_examples(records[:MOST_ROWS], origin_of(files), local=True)
    examples = replace(examples, label_names=class_labels(features_of(files[0])))
    is_whole = len(records) <= MOST_ROWS
    return Look(
        source=source,
        examples=examples,
        num_rows=len(list(examples.rows)),
        is_whole=is_whole,
        description=describe(files, examples, is_whole=is_whole),
        splits=describe_splits(source),
    )


def describe(files: Sequence[Path], examples: Examples, *, is_whole: bool) -> str:
    """Return the format, the rows and the columns of files in a sentence."""
    detected = describe_format(files[0])
    form = FORMATS.get(suffix_of(files[0]), suffix_of(files[0]).lstrip(".").capitalize())
    if detected is not None:
        form = detected.partition(": read as ")[2]
    rows = list(examples.rows)
    count = f"{len(rows):,} rows" if is_whole else f"more than {MOST_ROWS:,} rows, of which the "
    count += "" if is_whole else f"first {MOST_ROWS:,} are looked at"
    bad = f", {len(examples.rejected):,} unreadable lines" if examples.rejected else ""
    return f"{origin_of(tuple(files))}: {form}, {count}{bad}, columns {', '.join(columns_in(rows))}"


def columns_in(rows: Sequence[dict[str, object]]) -> list[str]:
    """Return the names of the columns that any row has, in their order."""
    return list(dict.fromkeys(column for row in rows for column in row))


def with_splits(source: DatasetSource) -> DatasetSource:
    """Return the source of a folder, with the splits whose files are there.

    A folder with a single data file is that file.
    """
    folder = local_path(source)
    there = {
        role: next((name for name in names if has_split(folder, name)), None)
        for role, names in SPLITS.items()
    }
    if there["train"] is not None:
        return replace(
            source,
            train_split=there["train"],
            eval_split=there["eval"],
            test_split=there["test"],
        )
    files = data_files(folder)
    if len(files) == 1:
        return replace(source, path=str(Path(source.path) / files[0].name))
    if not files:
        listed = ", ".join(names_in(folder)[:10]) or "nothing"
        raise DataError(f"{folder}: no file with rows ({listed} there). Name a file as --data.")
    if any(suffix_of(file) != ".txt" for file in files):
        names = ", ".join(file.name for file in files[:10])
        text = f"none of {names} is named train. Name one of them as --data, or rename it."
        raise DataError(f"{folder}: {text}")
    return source


def describe_splits(source: DatasetSource) -> str:
    """Return where the rows of the score come from, in a sentence."""
    held_out = f"{source.eval_fraction:.0%} of the training rows, drawn by seed"
    evaluated = f"the files of {source.eval_split!r}" if source.eval_split else held_out
    if source.test_split:
        return f"score on the files of {source.test_split!r}; validation on {evaluated}"
    return f"score on {evaluated}"


def look_at_hub(source: DatasetSource, *, read: bool) -> Look:
    """Return what is known of a data set of the Hub, whose first rows are read on request."""
    if not REPO_ID.fullmatch(source.path):
        raise RecipeError([Problem("data", f"{source.path}: neither a file nor USER/NAME.")])
    if not read:
        text = f"{source.path}: not read, since --task and the columns are given"
        return Look(source, None, 0, False, text, describe_splits(source))
    try:
        splits, rows, features = first_rows_of_hub(source)
    except DataError as error:
        text = f"{error}\nTo write a recipe without reading them, give --task, --text-column and "
        raise DataError(f"{text}--label-column.") from error
    there = {role: next((n for n in names if n in splits), None) for role, names in SPLITS.items()}
    source = replace(
        source,
        train_split=there["train"] or splits[0],
        eval_split=there["eval"],
        test_split=there["test"],
    )
    examples = Examples(rows, f"{source.path} {source.train_split}", label_names=features)
    text = f"{source.path}: splits {', '.join(splits)}; the first {len(rows):,} rows have columns "
    return Look(
        source=source,
        examples=examples,
        num_rows=len(rows),
        is_whole=False,
        description=text + ", ".join(columns_in(rows)),
        splits=describe_splits(source),
    )
