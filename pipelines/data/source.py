"""The source of a dataset: a frozen value of the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """Rows from the Hub, or from a file or folder of JSON, CSV, Parquet, Arrow or text."""

    path: str
    """Hub id, a local file, or a local folder with a file, shards or a subfolder for each split."""
    name: str | None = None
    """Configuration of the Hub dataset, as "sst2" of nyu-mll/glue."""
    revision: str | None = None
    """Commit, branch or tag of the Hub dataset."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str | None = None
    """Split to score on. Without one, eval_fraction of the training rows is held out."""
    eval_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Fraction of the training rows held out when there is no eval_split, or only one file."""
    split_seed: Annotated[int, Ge(0)] = 42
    """Seed of what is held out and what max_train_rows and max_eval_rows draw."""
    streaming: bool = False
    """Read the training rows while training, for a corpus larger than the disk."""
    max_train_rows: Annotated[int, Gt(0)] | None = None
    """Train on so many rows, drawn by split_seed; of a stream, the first."""
    max_eval_rows: Annotated[int, Gt(0)] | None = None
    """Score on so many rows, drawn by split_seed; of a stream, the first."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Stop at rows that cannot be used, or count them and write them to rejected.jsonl."""
