"""What every task has: where its rows come from, its head, features, loss and score."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.data.padding import Collator, PaddingCollator
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError
from pipelines.tasks.generation import Generation

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction, PreTrainedTokenizerBase

MULTIPLE = 8
"""To which training batches are padded: few lengths, whose kernels a CPU makes once and keeps.

Batches of like lengths, in evaluation, share theirs as they are.
"""


@dataclass(frozen=True)
class Features:
    """Model inputs of one split, with what encoding them cost."""

    dataset: Any
    report: dict[str, int]
    num_rows: int
    context: Any = None
    """What the task's scorer needs beside the logits."""
    locate: Callable[[int], str] = "row {}".format
    """Names the place that a row of `dataset` comes from."""
    lengths: Sequence[int] = ()
    """Tokens that each row had before it was cut, where rows are cut."""


@dataclass(frozen=True)
class Score:
    """Metrics of one evaluation. `interval` is the 95 % confidence interval of `primary`."""

    metrics: dict[str, Any]
    primary: str
    interval: tuple[float, float]
    num_rows: int

    def as_metrics(self) -> dict[str, Any]:
        """Return the score as the Trainer's metrics."""
        return self.metrics | {
            "primary": self.primary,
            "confidence_interval": list(self.interval),
            "rows": self.num_rows,
        }


@dataclass(frozen=True, kw_only=True)
class Task:
    """Options of a task; a subclass adds its behaviour."""

    dataset: DatasetSource
    """Rows to train and to score on."""

    pipeline_tag: ClassVar[str]

    auto_class: ClassVar[str]
    head: ClassVar[str | None] = None
    peft_task_type: ClassVar[str]
    needs_offsets: ClassVar[bool] = False
    """Whether the tokenizer must tell the characters of each token, as fast ones do."""
    length_field: ClassVar[str] = "max_length"
    """Name of the option that bounds a row."""
    cut_field: ClassVar[str] = "max_length"
    """Name of the option that bounds `Features.lengths`."""
    grouped_by: ClassVar[str] = "input"
    """What rows share that stay on one side of a split."""
    streams: ClassVar[bool] = False
    """Whether rows can be read while training, without holding all in memory."""
    needs_reference: ClassVar[bool] = False
    """Whether the loss compares the model with the base that it starts from."""
    chat_template: ClassVar[str | None] = None
    """Template that a tokenizer without one gets."""

    @property
    def length(self) -> int:
        """Return the tokens of the longest row."""
        return int(getattr(self, self.length_field))

    @property
    def pad_to_multiple_of(self) -> int:
        """Return what divides the length of a training batch, and that of the longest row."""
        return math.gcd(MULTIPLE, self.length)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield option and message for what no type can say."""
        yield from ()

    @property
    def default_generation(self) -> Generation:
        """Return the options of generation where none are typed."""
        return Generation()

    @property
    def stratified_by(self) -> str | None:
        """Return the column of labels that splits have in equal proportions, if there is one."""
        return None

    @property
    def document_column(self) -> str | None:
        """Return the column of a text that may be cut in two, to hold out its end."""
        return None

    def columns(self) -> Iterator[tuple[str, str]]:
        """Yield the columns that rows must have, each after the option that names it."""
        for option in fields(self):
            column = getattr(self, option.name)
            if option.name.endswith("_column") and column is not None:
                yield option.name, column

    def inputs(self, row: dict[str, Any]) -> Hashable:
        """Return what the model reads of a row that can be used."""
        raise NotImplementedError

    def group(self, row: dict[str, Any]) -> Hashable:
        """Return what no two rows on different sides of a split share."""
        return self.inputs(row)

    def row_labels(self, examples: Examples, index: int, row: dict[str, Any]) -> Sequence[str]:
        """Return the label names of a row that can be used; () if rows have none."""
        return ()

    def labels(self, train: Examples) -> tuple[str, ...]:
        """Return the label names in their order, fixed before training; () if there are none."""
        return ()

    def resolved(self, train: Examples) -> Task:
        """Return the task with what the training rows decide, as `recipe.json` keeps it."""
        return self

    def label_cautions(self, train: Examples) -> Iterator[str]:
        """Yield what looks wrong with the labels of the training rows."""
        yield from ()

    def check_scorable(self, held_out: Features) -> None:
        """Raise DataError for evaluation rows whose primary metric is not defined."""

    def example(
        self,
        examples: Examples,
        index: int,
        row: dict[str, Any],
        labels: tuple[str, ...] | None,
        *,
        labelled: bool = True,
    ) -> Any:
        """Return what `features` encodes of a row. Raise DataError for one that cannot be used.

        The message begins with `examples.locate(index)`. `labels` is None before they are known.
        """
        return row

    def features(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...],
        *,
        training: bool,
        labelled: bool = True,
    ) -> Features:
        """Encode rows. Raise DataError with file and line for a row that cannot be used.

        Rows to predict are not `labelled`: they need no labels, and what they have is not read.
        """
        raise NotImplementedError

    def num_tokens(self, row: dict[str, Any]) -> int:
        """Return the tokens of an encoded row, by which rows are grouped."""
        return len(row["input_ids"])

    def collate(self, pad_token_id: int, multiple: int = 1) -> Collator:
        """Return the picklable function that pads rows to a batch; `multiple` divides its length.

        Rows are padded on the right.
        """
        return PaddingCollator(pad_token_id, multiple)

    def loss(self, outputs: Any, labels: torch.Tensor, num_items: torch.Tensor) -> torch.Tensor:
        """Return the summed loss divided by `num_items`, the labels of the whole global batch."""
        raise NotImplementedError

    def reduce_logits(self, logits: Any, labels: torch.Tensor | None) -> Any:
        """Return what the scorer needs of a batch's logits."""
        return logits

    def score(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> Score:
        """Score a whole evaluation split."""
        raise NotImplementedError

    def predictions(
        self, logits: Any, given: Features, labels: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        """Return what the logits say of each row, ready to print."""
        raise NotImplementedError

    def row(self, text: str) -> dict[str, Any]:
        """Return the row of one text. Raise DataError if a row needs more than one."""
        raise NotImplementedError

    def check_generates(self) -> None:
        """Raise DataError for a task whose models write no text."""
        if self.head is not None:
            raise DataError(f"{type(self).__name__} writes no text. Use `gpt2-recipes predict`.")

    def prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Return the token ids that a model of this task continues, one prompt for each row.

        Raise DataError with file and line for a row without a text, and for a task that writes
        none.
        """
        self.check_generates()
        raise NotImplementedError

    def baseline(self, train: Features, held_out: Features) -> dict[str, float] | None:
        """Return the primary metric of a trivial predictor, or None to score the untuned model."""
        return None

    def merged(self) -> Task:
        """Return the task of a model that has its adapter merged into the base."""
        return self

    def model_kwargs(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return keyword arguments of from_pretrained that size the head."""
        return {}


def text_of(examples: Examples, index: int, row: dict[str, Any], column: str) -> str:
    """Return the text in a column. Raise DataError unless there is one."""
    text = row.get(column)
    if not isinstance(text, str):
        raise DataError(
            f"{examples.locate(index)}: column {column!r} holds {text!r}, not a text. "
            f"Columns: {', '.join(row)}."
        )
    return text


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the ids of whole texts, without special tokens or a warning about their length."""
    if tokenizer.is_fast:  # transformers would have it work out the characters of each token too
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    input_ids: list[list[int]] = tokenizer(texts, **options)["input_ids"]
    return input_ids


def check_truncated(examples: Examples, num_cut: int, num_rows: int, allowed: float) -> None:
    """Raise DataError when a larger share of the rows was cut than is allowed."""
    if num_cut > allowed * num_rows:
        raise DataError(
            f"{examples.origin}: {num_cut:,} of {num_rows:,} rows do not fit, more than "
            f"--task.max-truncated-fraction {allowed:g}. Raise --task.max-length."
        )
