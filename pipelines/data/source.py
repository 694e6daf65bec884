"""The source of a dataset: a frozen value of the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

DEFAULT_TEST_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True)
class MixedSource:
    """Training rows that are mixed into the stream of another source."""

    path: str
    """Hub id, a local file, a local folder, or a pattern of files."""
    name: str | None = None
    """Configuration of the Hub dataset."""
    revision: str | None = None
    """Commit, branch or tag of the Hub dataset."""
    train_split: str = "train"
    """Training split."""
    weight: Annotated[float, Gt(0)]
    """How often a row is drawn from here, in proportion to the other weights."""

    @property
    def source(self) -> DatasetSource:
        """Return the source of the rows."""
        return DatasetSource(
            path=self.path,
            name=self.name,
            revision=self.revision,
            train_split=self.train_split,
            streaming=True,
        )


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """Rows from the Hub, or from JSON, CSV, Parquet, Arrow or text files."""

    path: str
    """Hub id, a local file, a pattern of files such as "web/*.jsonl", or a local folder with a
    file, shards or a subfolder for each split."""
    name: str | None = None
    """Configuration of the Hub dataset, such as sst2 of nyu-mll/glue."""
    revision: str | None = None
    """Commit, branch or tag of the Hub dataset."""
    train_split: str = "train"
    """Training split."""
    eval_split: str | None = None
    """Validation split; without one, eval_fraction of the training rows is held out."""
    eval_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Fraction of the training rows to hold out if there is no eval_split, or only one file."""
    test_split: str | None = None
    """Split of the reported score; without one, test_fraction of the training rows is held out."""
    test_fraction: Annotated[float, Ge(0), Lt(1)] | None = None
    """Fraction of the training rows to hold out if there is no test_split, or only one file.
    By default 0.1 where something is chosen by the validation split, else 0."""
    scored_split: Literal["auto", "eval", "test"] = "auto"
    """Split of the reported score: auto is test where there are test rows, else eval."""
    split_seed: Annotated[int, Ge(0)] = 42
    """Seed of the rows to hold out, and of those drawn for a max_..._rows."""
    streaming: bool = False
    """Read the training rows during training, for a corpus larger than memory or disk."""
    shuffle_buffer_size: Annotated[int, Gt(1)] | None = None
    """Rows of a stream that are read together and permuted. Without it only the files are."""
    num_lanes: Annotated[int, Gt(0)] | None = None
    """Parts of a stream that are read in turn. The batches are the same on every number of
    processes and workers that divides it; without it there is one for each of these."""
    mixed_with: tuple[MixedSource, ...] | None = None
    """Other sources of a stream's training rows; the scored rows are of this one."""
    weight: Annotated[float, Gt(0)] | None = None
    """How often a row is drawn from here, in proportion to the weights of `mixed_with`."""
    max_train_rows: Annotated[int, Gt(0)] | None = None
    """Most training rows, drawn by split_seed; of a stream, the first rows."""
    max_eval_rows: Annotated[int, Gt(0)] | None = None
    """Most validation rows, drawn by split_seed; of a stream, the first rows."""
    max_test_rows: Annotated[int, Gt(0)] | None = None
    """Most test rows, drawn by split_seed; of a stream, the first rows."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Stop at unusable rows, or skip them, count them and list them in rejected.jsonl."""

    @property
    def has_test(self) -> bool:
        """Tell whether there are test rows: a split of them, or training rows held out."""
        return self.test_split is not None or bool(self.test_fraction)

    @property
    def reported_split(self) -> Literal["eval", "test"]:
        """Return which split's score is reported."""
        if self.scored_split != "auto":
            return self.scored_split
        return "test" if self.has_test else "eval"
