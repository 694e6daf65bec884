"""What every task has: where its rows come from, its head, features, loss and score."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipelines.data.padding import pad_inputs
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError
from pipelines.tasks.generation import Continuation, Generation

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction, PreTrainedTokenizerBase

Objective = Literal["head", "language_model", "instruction", "preference"]
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
    where: Callable[[int], str] = "row {}".format
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

    does: ClassVar[str]
    """What a model of this task does, after "that"; for the card."""
    limits: ClassVar[str]
    """A sentence for the card."""
    pipeline_tag: ClassVar[str]
    example_imports: ClassVar[tuple[str, ...]] = ()
    """Lines that `example_lines` needs beside torch and transformers."""

    objective: ClassVar[Objective]
    """What is learned, by which the trainer is chosen: "head" has the task's own `loss`;
    "language_model" every next token of a row; "instruction" the tokens that a row has `labels`
    for, and scores what the model writes by `score_replies`; "preference" pairs of replies, by DPO.
    """
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
    chat_template: ClassVar[str | None] = None
    """Template that a tokenizer without one gets."""
    writes_replies: ClassVar[bool] = False
    """Whether a model writes a reply, without the spaces around it, and not the rest of a text."""

    @property
    def length(self) -> int:
        """Return the tokens of the longest row."""
        return int(getattr(self, self.length_field))

    @property
    def pad_to_multiple_of(self) -> int:
        """Return what divides the length of a training batch, and that of the longest row."""
        return math.gcd(MULTIPLE, self.length)

    @property
    def learns_tokens(self) -> bool:
        """Tell whether the model predicts tokens, and not labels of a whole row."""
        return self.objective != "head"

    @property
    def isolates_rows(self) -> bool:
        """Tell whether several texts share a row whose attention mask isolates them."""
        return False

    def trainer_options(self) -> dict[str, Any]:
        """Return the options that the objective's trainer takes from the task, by their names."""
        return {}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield option and message for what no type can say."""
        yield from ()

    @property
    def default_generation(self) -> Generation:
        """Return the options of generation where none are typed."""
        return Generation()

    @property
    def evaluator_name(self) -> str | None:
        """Return the name of `evaluate`'s evaluator for the task, or None if there is none."""
        return None

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

        The message begins with `examples.where(index)`. `labels` is None before they are known.
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

    def collate(
        self, pad_token_id: int, multiple: int = 1
    ) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return the function that pads rows on the right to a batch, as long as a `multiple`."""

        def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
            import torch

            inputs = pad_inputs(rows, pad_token_id, multiple)
            if "labels" in rows[0]:
                inputs["labels"] = torch.tensor([row["labels"] for row in rows])
            return inputs

        return batch

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

    def score_replies(self, written: Sequence[Continuation], held_out: Features) -> Score:
        """Score what the model writes after each prompt of `held_out.context`."""
        raise NotImplementedError

    def predictions(
        self, logits: Any, given: Features, labels: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        """Return what the logits say of each row, ready to print."""
        raise NotImplementedError

    def metric_inputs(
        self,
        examples: Examples,
        predictions: Sequence[dict[str, Any]],
        labels: tuple[str, ...],
        columns: Collection[str],
    ) -> dict[str, list[Any]]:
        """Return the `predictions` and `references` that an `evaluate` module computes from.

        `predictions` are those of `Task.predictions`. `columns` are the module's names for the
        parts of one prediction, none where it is a single value.
        """
        raise NotImplementedError

    def evaluator_row(self, inputs: Mapping[str, str | None]) -> dict[str, Any]:
        """Return a row of what `evaluate`'s evaluator gives a pipeline, by the pipeline's names.

        An input that is not used is None. Raise DataError for other names than the pipeline's.
        """
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

    def example_row(self) -> dict[str, Any]:
        """Return a row to ask a model of, for the card."""
        raise NotImplementedError

    def example_lines(self) -> list[str]:
        """Return lines of Python that ask `model` with `tokenizer` by transformers alone."""
        raise NotImplementedError

    def head_arguments(self, labels: tuple[str, ...]) -> list[str]:
        """Return `model_kwargs` as arguments in Python, where `labels` is a list of the names."""
        return []

    def merged(self) -> Task:
        """Return the task of a model that has its adapter merged into the base."""
        return self

    def model_kwargs(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return keyword arguments of from_pretrained that size the head."""
        return {}


def literal(value: Any) -> str:
    """Return a literal of Python that cannot close a Markdown fence."""
    return json.dumps(value).replace("`", "\\u0060")


def text_of(examples: Examples, index: int, row: dict[str, Any], column: str) -> str:
    """Return the text in a column. Raise DataError unless there is one."""
    if not isinstance(row.get(column), str):
        raise DataError(
            f"{examples.where(index)}: column {column!r} holds {row.get(column)!r}, not a text. "
            f"Columns: {', '.join(row)}."
        )
    return row[column]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the ids of whole texts, without special tokens or a warning about their length."""
    if tokenizer.is_fast:  # transformers would have it work out the characters of each token too
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        found = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]


def check_truncated(examples: Examples, num_cut: int, num_rows: int, allowed: float) -> None:
    """Raise DataError when a larger share of the rows was cut than is allowed."""
    if num_cut > allowed * num_rows:
        raise DataError(
            f"{examples.origin}: {num_cut:,} of {num_rows:,} rows do not fit, more than "
            f"--task.max-truncated-fraction {allowed:g}. Raise --task.max-length."
        )
