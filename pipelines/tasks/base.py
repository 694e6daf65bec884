"""The interface of a task: rows, features, loss, score and predictions."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipelines.data.encoded_rows import EncodedSplit, MemorySink, RowSink, Sinks
from pipelines.data.padding import Collator, PaddingCollator
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError
from pipelines.tasks.generation import Continuation, Generation, Turn
from pipelines.tasks.interface import Interface

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction, PreTrainedTokenizerBase

Objective = Literal["head", "language_model", "instruction", "preference"]
Chart = Literal["confusion_matrix", "lengths", "scatter"]
"""A picture of the results of all rows: labels, lengths of texts, or numbers against targets."""
Loss = Callable[[Any, "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Takes a model's outputs, labels, and the number of labels of the whole global batch."""
MULTIPLE = 8
"""Of which the lengths of training batches are multiples: few lengths, whose kernels a CPU caches.

Evaluation batches hold rows of similar lengths, and need no multiple.
"""


@dataclass(frozen=True)
class Features:
    """Model inputs of one split, with counts of what encoding did to the rows."""

    dataset: Any
    report: dict[str, int]
    num_rows: int
    context: Any = None
    """Extra inputs of the task's scorer; rows to train on may have none."""
    locate: Callable[[int], str] = "row {}".format
    """Returns the file and line, or the split and row, of a row of `dataset`."""
    lengths: Sequence[int] = ()
    """Tokens of each row before truncation, if rows are truncated."""


@dataclass(frozen=True)
class Score:
    """Metrics of one evaluation.

    `interval` is the 95 % confidence interval of the metric `primary`.
    """

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


@dataclass(frozen=True)
class RowResult:
    """What a model made of one evaluation row; `row` is its location.

    `Task.statistic` gives the primary metric from the mean `values` of all rows.
    """

    row: str
    prediction: Any
    reference: Any
    values: Sequence[float]


@dataclass(frozen=True)
class ShownResult:
    """The result of a row as a reader sees it; rows with a lower `rank` are worse."""

    prediction: str
    reference: str | None
    rank: tuple[float, ...]
    detail: str = ""
    """How sure the model is, or how good the prediction."""


@dataclass(frozen=True)
class SamplePrompt:
    """The tokens that a model continues, and the text that follows them in the row."""

    row: str
    input_ids: list[int]
    reference: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """Options of a task; a subclass adds its behaviour."""

    dataset: DatasetSource
    """Rows for training and evaluation."""

    pipeline_tag: ClassVar[str]

    objective: ClassVar[Objective]
    """What is learned, by which the trainer is chosen: "head" has the task's own `loss`;
    "language_model" every next token of a row; "instruction" the tokens that a row has `labels`
    for, and scores what the model writes by `score_replies`; "preference" pairs of replies, by DPO.
    """
    auto_class: ClassVar[str]
    head: ClassVar[str | None] = None
    peft_task_type: ClassVar[str]
    needs_offsets: ClassVar[bool] = False
    """Whether the tokenizer must return the character offsets of tokens, as fast ones do."""
    length_field: ClassVar[str] = "max_length"
    """Name of the option that limits the tokens of a row."""
    cut_field: ClassVar[str] = "max_length"
    """Name of the option that limits `Features.lengths`."""
    grouped_by: ClassVar[str] = "input"
    """What rows have in common that are in the same split."""
    streams: ClassVar[bool] = False
    """Whether rows can be read while training, without holding all in memory."""
    needs_reference: ClassVar[bool] = False
    """Whether the loss compares the model with the base that it starts from."""
    chat_template: ClassVar[str | None] = None
    """Chat template for a tokenizer that has none."""
    reads_windows: ClassVar[bool] = False
    """Whether a row that is too long is read in several windows, and not truncated."""
    distils: ClassVar[bool] = False
    """Whether `distillation_loss` is defined."""
    writes_replies: ClassVar[bool] = False
    """Whether a model writes a reply, without the spaces around it, and not the rest of a text."""

    @property
    def metrics(self) -> dict[str, bool]:
        """Return the metrics to choose by, the primary one first, and whether greater is better.

        A task needs them only for choices and for `gpt2-recipes compare`.
        """
        raise NotImplementedError

    @property
    def length(self) -> int:
        """Return the largest number of tokens of a row."""
        return int(getattr(self, self.length_field))

    def with_length(self, length: int) -> Task:
        """Return the task whose rows have at most `length` tokens."""
        options: dict[str, Any] = {self.length_field: length}
        return replace(self, **options)

    @property
    def pad_to_multiple_of(self) -> int:
        """Return the number of which training batches' lengths are multiples.

        It divides the longest row, so that padding never exceeds that.
        """
        return math.gcd(MULTIPLE, self.length)

    @property
    def has_labels(self) -> bool:
        """Tell whether a result has the names of labels; by default if they size the head."""
        return "num_labels" in self.model_kwargs(())

    @property
    def learns_tokens(self) -> bool:
        """Tell whether the model predicts tokens, and not labels of a whole row."""
        return self.objective != "head"

    @property
    def isolates_rows(self) -> bool:
        """Tell whether several texts share a row whose attention mask isolates them."""
        return False

    @property
    def rows_have_one_length(self) -> bool:
        """Tell whether all training rows have `length` tokens."""
        return False

    def trainer_options(self) -> dict[str, Any]:
        """Return the options that the objective's trainer takes from the task, by their names."""
        return {}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield an option and a message for each rule between options that is broken."""
        yield from ()

    @property
    def default_generation(self) -> Generation:
        """Return the options of generation for a command that gives none."""
        return Generation()

    @property
    def evaluator_name(self) -> str | None:
        """Return the name of `evaluate`'s evaluator for the task, or None if there is none."""
        return None

    @property
    def stratified_by(self) -> str | None:
        """Return the column by whose labels splits are stratified, or None."""
        return None

    @property
    def document_column(self) -> str | None:
        """Return the column of a text whose end may be held out, or None."""
        return None

    def columns(self) -> Iterator[tuple[str, str]]:
        """Yield the columns that rows must have, each after the option that names it."""
        for option in fields(self):
            column = getattr(self, option.name)
            if option.name.endswith("_column") and column is not None:
                yield option.name, column

    def inputs(self, row: dict[str, Any]) -> Hashable:
        """Return the part of a usable row that the model reads."""
        raise NotImplementedError

    def group(self, row: dict[str, Any]) -> Hashable:
        """Return the key of a row's group; rows of one group are in the same split."""
        return self.inputs(row)

    def row_labels(self, examples: Examples, index: int, row: dict[str, Any]) -> Sequence[str]:
        """Return the label names of a usable row; () if rows have none."""
        return ()

    def labels(self, train: Examples) -> tuple[str, ...]:
        """Return all label names in the order of their ids; () if there are none."""
        return ()

    def resolved(self, train: Examples) -> Task:
        """Return the task with the options that the training rows decide."""
        return self

    def label_cautions(self, train: Examples) -> Iterator[str]:
        """Yield a caution for whatever looks wrong with the labels of the training rows."""
        yield from ()

    def check_scorable(self, held_out: Features) -> None:
        """Raise DataError if the primary metric is not defined for the evaluation rows."""

    def example(
        self,
        examples: Examples,
        index: int,
        row: dict[str, Any],
        labels: tuple[str, ...] | None,
        *,
        labelled: bool = True,
    ) -> Any:
        """Return the part of a row that `features` encodes.

        Raise DataError for an unusable row. The message begins with `examples.locate(index)`.
        `labels` is None before they are known.
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
        """Encode rows. Raise DataError with file and line for an unusable row.

        Rows to predict are not `labelled`: they need no labels, and any labels are ignored.
        """
        encoded = self.encode(
            examples, tokenizer, labels, training=training, sinks=MemorySink, labelled=labelled
        )
        return self.restored(examples, encoded)

    def encode(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...],
        *,
        training: bool,
        sinks: Sinks,
        labelled: bool = True,
    ) -> EncodedSplit:
        """Encode rows for `features`, into sinks. It reads the rows once, in order."""
        raise NotImplementedError

    def restored(self, examples: Examples, encoded: EncodedSplit) -> Features:
        """Return the features of rows that `encode` encoded, in this process or before."""
        return Features(
            encoded.rows,
            encoded.report,
            num_rows=len(encoded.rows),
            locate=examples.locate,
            lengths=encoded.lengths,
        )

    def num_tokens(self, row: dict[str, Any]) -> int:
        """Return the number of tokens of an encoded row, by which batches are grouped."""
        return len(row["input_ids"])

    def collate(self, pad_token_id: int, multiple: int = 1) -> Collator:
        """Return a picklable function that pads rows to a batch, on the right.

        `multiple` divides the length of the batch.
        """
        return PaddingCollator(pad_token_id, multiple)

    def loss(self, outputs: Any, labels: torch.Tensor, num_items: torch.Tensor) -> torch.Tensor:
        """Return the summed loss divided by `num_items`.

        `num_items` is the number of labels of the whole global batch.
        """
        raise NotImplementedError

    def distillation_loss(
        self,
        outputs: Any,
        teacher: Any,
        labels: torch.Tensor,
        num_items: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        """Return the summed distance to a teacher's outputs of the batch, divided as `loss` is.

        It is multiplied by the square of the temperature, which divides its gradients.
        """
        raise NotImplementedError

    def training_loss(self, train: Features, labels: tuple[str, ...]) -> Loss:
        """Return the loss to train by: `loss`, with what the training rows decide of it."""
        return self.loss

    def reduce_logits(self, logits: Any, labels: torch.Tensor | None) -> Any:
        """Return the part of a batch's logits that the scorer needs."""
        return logits

    def score(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> Score:
        """Score a whole evaluation split."""
        raise NotImplementedError

    @property
    def tunes(self) -> tuple[str, ...]:
        """Return the names of the options that the validation rows decide after the training."""
        return ()

    def tune(self, prediction: EvalPrediction, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return the options that `tunes` names, as JSON-like values, from the validation rows.

        `prediction` is as for `score`, with its rows in any order.
        """
        return {}

    def tuned(self, options: Mapping[str, Any]) -> Task:
        """Return the task with the options that `tune` returned."""
        return replace(self, **options) if options else self

    def score_replies(self, written: Sequence[Continuation], held_out: Features) -> Score:
        """Score what the model writes after each prompt of `held_out.context`."""
        raise NotImplementedError

    def row_results(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> list[RowResult]:
        """Return the result of each row that `score` scores, in their order.

        A task without this method or `reply_results` leaves no predictions.jsonl.
        """
        return []

    def reply_results(self, written: Sequence[Continuation], held_out: Features) -> list[RowResult]:
        """Return the result of each reply that `score_replies` scores, in their order."""
        return []

    @property
    def chart(self) -> Chart | None:
        """Return the picture that shows the results of all rows, or None."""
        return None

    def shown(self, result: RowResult) -> ShownResult:
        """Return the result of a row for a report."""
        prediction = json.dumps(result.prediction, ensure_ascii=False)
        reference = json.dumps(result.reference, ensure_ascii=False)
        return ShownResult(prediction, reference, (result.values[0],))

    def tokens_read(self, held_out: Features, index: int) -> Sequence[int]:
        """Return the tokens that the model reads for the row of a result."""
        return held_out.dataset[index]["input_ids"]  # type: ignore[no-any-return]

    def sample_prompts(
        self, held_out: Features, tokenizer: PreTrainedTokenizerBase, num_rows: int
    ) -> list[SamplePrompt]:
        """Return prompts to continue before and after training; [] if no text is generated."""
        return []

    def statistic(self, means: Any) -> Any:
        """Return the primary metric of each set of rows, (sets,), from (sets, k) mean values.

        The values are those of `RowResult`. By default the metric is the mean of the first one.
        """
        return means[:, 0]

    def predictions(
        self, logits: Any, given: Features, labels: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        """Return a prediction for each row, as JSON-like values."""
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

    @property
    def interface(self) -> Interface:
        """Return what a person gives a model of this task, and what comes back."""
        raise NotImplementedError

    def texts_of_input(self, text: str) -> tuple[str, ...]:
        """Return the texts of `interface.columns` that a model reads as a text, on a line each.

        Return () if they cannot be told apart.
        """
        num_columns = len(self.interface.columns)
        texts = tuple(text.split("\n")) if num_columns > 1 else (text,)
        return texts if len(texts) == num_columns else ()

    def thresholds_of(self, labels: tuple[str, ...]) -> dict[str, float]:
        """Return the probability above which each label is given; {} if the likeliest one is."""
        return {}

    def check_generates(self) -> None:
        """Raise DataError for a task whose models generate no text."""
        if self.head is not None:
            raise DataError(f"{type(self).__name__} generates no text. Use `gpt2-recipes predict`.")

    def prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Return the token ids of each row's prompt, which a model of this task continues.

        Raise DataError with file and line for a row without a prompt, and for a task that
        generates no text.
        """
        self.check_generates()
        raise NotImplementedError

    @property
    def keeps_turns(self) -> bool:
        """Tell whether a model reads the earlier turns of a conversation before a message."""
        return False

    @property
    def chat_hint(self) -> str:
        """Return what a user has to know who talks with a model, in a sentence or two."""
        self.check_generates()
        raise NotImplementedError

    def conversation(
        self, turns: Sequence[Turn], text: str, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        """Return the token ids that end where the reply to a message begins.

        `turns` are the earlier ones, none unless `keeps_turns`. Raise DataError for an empty
        message, and for a task that generates no text.
        """
        self.check_generates()
        raise NotImplementedError

    def baseline(self, train: Features, held_out: Features) -> dict[str, float] | None:
        """Return the primary metric of a trivial predictor.

        None means that the untuned model is the baseline.
        """
        return None

    def merged(self) -> Task:
        """Return the task of a model whose adapter is merged into the base."""
        return self

    def model_kwargs(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return keyword arguments of from_pretrained that configure the head."""
        return {}


def to_row_results(
    locations: Iterable[str],
    predictions: Iterable[Any],
    references: Iterable[Any],
    values: Any,
) -> list[RowResult]:
    """Return the results of rows; `values` is (rows, k)."""
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64).tolist()
    columns = zip(locations, predictions, references, numbers, strict=True)
    return [RowResult(*each) for each in columns]


def text_of(examples: Examples, index: int, row: dict[str, Any], column: str) -> str:
    """Return the text in a column. Raise DataError for any other value."""
    text = row.get(column)
    if not isinstance(text, str):
        raise DataError(
            f"{examples.locate(index)}: column {column!r} holds {text!r}, not a text. "
            f"Columns: {', '.join(row)}."
        )
    return text


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts, without special tokens.

    Texts are not truncated, and long ones cause no warning.
    """
    if tokenizer.is_fast:  # transformers would also compute the offsets of each token
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    input_ids: list[list[int]] = tokenizer(texts, **options)["input_ids"]
    return input_ids


def write_rows(
    encoded: Iterable[tuple[dict[str, Any], int, bool]],
    examples: Examples,
    rows: RowSink,
    allowed: float,
) -> tuple[array[int], int]:
    """Write encoded rows; return their tokens before truncation, and how many rows are cut.

    `encoded` has each row with both. Raise DataError for no rows, and for too many that are cut.
    """
    lengths, num_cut = array("q"), 0
    for row, length, is_cut in encoded:
        rows.append(row)
        lengths.append(length)
        num_cut += is_cut
    if not lengths:
        raise DataError(f"{examples.origin}: no rows.")
    check_truncated(examples, num_cut, len(lengths), allowed)
    return lengths, num_cut


def check_truncated(examples: Examples, num_cut: int, num_rows: int, allowed: float) -> None:
    """Raise DataError if a larger fraction of the rows was truncated than is allowed."""
    if num_cut > allowed * num_rows:
        raise DataError(
            f"{examples.origin}: {num_cut:,} of {num_rows:,} rows do not fit, more than "
            f"--task.max-truncated-fraction {allowed:g}. Raise --task.max-length."
        )
