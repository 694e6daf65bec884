"""Classification of texts or pairs: one label, several, or regression."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, Lt

from pipelines.data.encoded_rows import EncodedSplit, Sinks
from pipelines.data.rows import Examples
from pipelines.data.rows_on_disk import map_rows
from pipelines.errors import DataError
from pipelines.tasks import label_cautions
from pipelines.tasks.base import (
    Chart,
    Features,
    Loss,
    Objective,
    RowResult,
    Score,
    ShownResult,
    Task,
    text_of,
    to_row_results,
    write_rows,
)
from pipelines.tasks.cells import to_number
from pipelines.tasks.classification_scores import (
    correlation_of_moments,
    f1_counts,
    f1_of_counts,
    moments,
    score_classes,
    score_label_sets,
    score_numbers,
)
from pipelines.tasks.encoding import encode_texts
from pipelines.tasks.interface import Interface
from pipelines.tasks.label_reader import LabelReader, natural_order
from pipelines.tasks.label_values import (
    balanced_class_weights,
    balanced_positive_weights,
    check_names,
    wrong_thresholds,
    wrong_weights,
)
from pipelines.tasks.thresholds import DEFAULT, best_threshold, sigmoid

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction, PreTrainedTokenizerBase

SEVERAL_ONLY = (
    "label_columns",
    "label_form",
    "label_names",
    "label_separator",
    "thresholds",
    "tune_thresholds",
)
"""Options of multi-label classification alone."""
LARGEST = 3.4028234663852886e38  # the largest float32, in which targets are learned


@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """Predict labels, or a number, at the last token of a text."""

    problem_type: Literal[
        "single_label_classification", "multi_label_classification", "regression"
    ] = "single_label_classification"
    """One label, several labels (a list in the label column), or a number."""
    text_column: str = "text"
    """Column that holds the text."""
    text_pair_column: str | None = None
    """Column that holds the second text of a pair."""
    label_column: str = "label"
    """Column that holds the label."""
    label_columns: tuple[str, ...] = ()
    """For several labels, in place of label_column: one column of 0 and 1 for each label."""
    label_form: Literal["auto", "list", "multi_hot"] = "auto"
    """For several labels: lists of names or ids, or vectors of 0 and 1.
    With auto, the form of the training rows; recipe.json records it."""
    label_names: tuple[str, ...] = ()
    """Names of the positions of multi_hot vectors; by default 0, 1, 2, ..."""
    label_separator: str | None = None
    """For several labels in a text such as "a;b": the separator, here ";"."""
    max_length: Annotated[int, Ge(4)] = 128
    """Most tokens of a row; longer rows are truncated and counted."""
    max_truncated_fraction: Annotated[float, Ge(0), Le(1)] = 1.0
    """Stop if more than this fraction of the rows is truncated."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Weight of each label in the training loss: balanced, or a value for each, as "spam 3 ham 1".
    For several labels, the weight of the rows that have the label."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of the target spread over all labels; for several labels, over yes and no."""
    thresholds: dict[str, float] | None = None
    """For several labels: the probability above which each is predicted, as "a 0.3 b 0.6";
    by default 0.5."""
    tune_thresholds: bool = False
    """For several labels: choose the thresholds with the best F1 of each label on the validation
    rows, after the training. task.json records them."""

    pipeline_tag: ClassVar[str] = "text-classification"

    objective: ClassVar[Objective] = "head"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    head: ClassVar[str | None] = "score"
    distils: ClassVar[bool] = True
    peft_task_type: ClassVar[str] = "SEQ_CLS"

    @property
    def has_labels(self) -> bool:
        return self.problem_type != "regression"

    @property
    def metrics(self) -> dict[str, bool]:
        if self.problem_type == "regression":
            return {"pearsonr": True, "spearmanr": True, "mse": False, "loss": False}
        if self.several:
            return {"micro_f1": True, "macro_f1": True, "loss": False}
        return {"accuracy": True, "macro_f1": True, "balanced_accuracy": True, "loss": False}

    @property
    def several(self) -> bool:
        """Tell whether a row may have any number of labels."""
        return self.problem_type == "multi_label_classification"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield options of other problem types, and options that exclude each other."""
        yield from self._label_problems()
        for message in wrong_weights(self.class_weights):
            yield "class_weights", message
        for message in wrong_thresholds(self.thresholds):
            yield "thresholds", message
        if self.tune_thresholds and self.thresholds is not None:
            yield "tune_thresholds", "would replace the given thresholds. Give one of them."
        if self.problem_type == "regression":
            for option in ("class_weights", "label_smoothing"):
                if getattr(self, option) not in (None, 0.0):
                    yield option, "is for labels; a regression learns a number."

    def _label_problems(self) -> Iterator[tuple[str, str]]:
        """Yield problems of the options that say how rows hold several labels."""
        columns, names = self.label_columns, self.label_names
        if not self.several:
            for option in SEVERAL_ONLY:
                if getattr(self, option) not in ((), None, "auto", False):
                    text = 'is for problem_type "multi_label_classification".'
                    yield option, text
            return
        for option, values in (("label_columns", columns), ("label_names", names)):
            if values and (len(values) < 2 or len(set(values)) < len(values)):
                yield option, f"{', '.join(values)}: give two or more different names."
        if self.label_separator == "":
            yield "label_separator", "is empty."
        if columns and (names or self.label_separator or self.label_form != "auto"):
            yield "label_columns", "excludes label_form, label_names and label_separator."
        if names and self.label_form == "list":
            yield "label_names", "are of multi_hot vectors; lists hold their own names."

    @property
    def label_reader(self) -> LabelReader:
        """Return the reader of the rows' labels."""
        return LabelReader(
            column=self.label_column,
            columns=self.label_columns,
            form=self.label_form,
            names=self.label_names,
            separator=self.label_separator,
            several=self.several,
        )

    def resolved(self, train: Examples) -> TextClassification:
        """Return the task with the form of the label lists that the training rows have."""
        reader = self.label_reader.resolved(train)
        return replace(self, label_form=reader.form, label_names=reader.names)

    def labels(self, train: Examples) -> tuple[str, ...]:
        """Return names from the dataset's ClassLabel, or from the rows in natural order.

        Raise RecipeError for an option with a value a label that lacks one or has another.
        """
        if self.problem_type == "regression":
            return ()
        names = self._read_names(train)
        for option in ("class_weights", "thresholds"):
            values = getattr(self, option)
            if isinstance(values, dict):
                check_names(option, values, names)
        return names

    def _read_names(self, train: Examples) -> tuple[str, ...]:
        """Return the names of all labels in the order of their ids."""
        reader = self.label_reader.resolved(train)
        names = {name for i, row in enumerate(train.rows) for name in reader.read(train, i, row)}
        if reader.columns or reader.form == "multi_hot":
            return reader.columns or reader.names
        if len(names) < 2:
            raise DataError(
                f"{train.origin}: column {self.label_column!r} holds one label, "
                f"{', '.join(names) or 'none'}; a classifier needs two."
            )
        declared = train.label_names.get(self.label_column)
        return declared or tuple(sorted(names, key=natural_order))

    @property
    def stratified_by(self) -> str | None:
        if self.problem_type == "regression":
            return None
        return ", ".join(self.label_columns) or self.label_column

    def columns(self) -> Iterator[tuple[str, str]]:
        for option, column in super().columns():
            if option != "label_column" or not self.label_columns:
                yield option, column
        for column in self.label_columns:
            yield "label_columns", column

    def inputs(self, row: dict[str, Any]) -> Hashable:
        return tuple(row[c] for c in (self.text_column, self.text_pair_column) if c)

    def row_labels(self, examples: Examples, index: int, row: dict[str, Any]) -> Sequence[str]:
        return self.label_reader.read(examples, index, row) if self.stratified_by else ()

    def label_cautions(self, train: Examples) -> Iterator[str]:
        """Yield cautions about empty texts, names of one label, missing values and scales."""
        has_labels = self.has_labels
        reader = self.label_reader.resolved(train) if has_labels else self.label_reader
        columns = [each for each in (self.text_column, self.text_pair_column) if each]
        empty, counts = Counter[str](), Counter[str]()
        for index, row in enumerate(train.rows):
            empty.update(column for column in columns if not row[column].strip())
            counts.update(reader.read(train, index, row) if has_labels else ())
        for column, num_rows in empty.items():
            yield f"{num_rows:,} training rows have an empty text in column {column!r}"
        if not has_labels:
            return
        yield from label_cautions.name_cautions(counts)
        if self.several:
            yield from label_cautions.constant_cautions(counts, train.num_rows)
        else:
            yield from label_cautions.list_cautions(counts)
            yield from label_cautions.number_cautions(counts)

    def target(
        self, examples: Examples, index: int, row: dict[str, Any], labels: tuple[str, ...] | None
    ) -> Any:
        """Return the training target: a class id, a 0/1 vector, or a number."""
        if self.problem_type == "regression":
            return read_target(examples, index, row.get(self.label_column))
        names = self.label_reader.read(examples, index, row)
        if labels is None:
            return None
        for name in names:
            if name not in labels:
                raise DataError(
                    f"{examples.locate(index)}: label {name!r} does not occur in the training "
                    f"rows. Known labels: {', '.join(labels)}."
                )
        if self.several:
            return [float(name in names) for name in labels]
        return labels.index(names[0])

    def example(
        self,
        examples: Examples,
        index: int,
        row: dict[str, Any],
        labels: tuple[str, ...] | None,
        *,
        labelled: bool = True,
    ) -> tuple[list[str], Any]:
        columns = [c for c in (self.text_column, self.text_pair_column) if c]
        texts = [text_of(examples, index, row, column) for column in columns]
        return texts, self.target(examples, index, row, labels) if labelled else None

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
        task = self.resolved(examples) if labelled else self
        make = partial(task.encode_part, examples, tokenizer, labels, labelled)
        encoded, rows = chain.from_iterable(map_rows(make, examples.sequence)), sinks("rows")
        allowed = self.max_truncated_fraction if labelled else 1.0
        lengths, num_cut = write_rows(encoded, examples, rows, allowed)
        report = {"rows": len(lengths), "rows_cut": num_cut}
        return EncodedSplit({"rows": rows.close()}, report, lengths)

    def encode_part(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...],
        labelled: bool,
        positions: range,
    ) -> list[tuple[dict[str, Any], int, bool]]:
        """Return encoded rows, each with its tokens before truncation, and whether it is cut."""
        made = [
            self.example(examples, index, row, labels, labelled=labelled)
            for index, row in examples.at(positions)
        ]
        encoded = encode_texts(tokenizer, (text for texts, _ in made for text in texts))
        eos_token_id, part = int(tokenizer.eos_token_id), []
        for texts, target in made:
            parts = [next(encoded) for _ in texts]
            input_ids, is_cut = join_texts(parts, eos_token_id, self.max_length)
            row = {"input_ids": input_ids} | ({"labels": target} if labelled else {})
            part.append((row, sum(map(len, parts)) + len(parts) - 1, is_cut))
        return part

    def loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items: torch.Tensor,
        weights: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Return the summed loss divided by `num_items`, whatever the `weights` of the labels.

        To divide by the number of labels, and not by their weights, keeps the loss of a step the
        same under accumulation and on several processes. Balanced weights of classes are 1 on
        average over the training rows.
        """
        import torch
        from torch.nn import functional

        logits, smoothing = outputs.logits.float(), self.label_smoothing
        weight = None if weights is None else torch.tensor(weights, device=logits.device)
        if self.problem_type == "regression":
            total = functional.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
        elif self.several:
            targets = labels * (1 - smoothing) + smoothing / 2 if smoothing else labels
            total = functional.binary_cross_entropy_with_logits(
                logits, targets, pos_weight=weight, reduction="sum"
            )
        else:
            total = functional.cross_entropy(
                logits, labels, weight=weight, label_smoothing=smoothing, reduction="sum"
            )
        return total / num_items

    def training_loss(self, train: Features, labels: tuple[str, ...]) -> Loss:
        return partial(self.loss, weights=self.loss_weights(train, labels))

    def distillation_loss(
        self,
        outputs: Any,
        teacher: Any,
        labels: torch.Tensor,
        num_items: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        """Return the divergence of the labels' probabilities; squared differences of numbers."""
        from torch.nn import functional

        from pipelines.tasks.distances import divergence

        logits, expected = outputs.logits.float(), teacher.logits.float()
        if self.problem_type == "regression":
            return functional.mse_loss(logits, expected, reduction="sum") / num_items
        if self.several:  # of each label and its opposite, whose logit is 0
            logits = functional.pad(logits.unsqueeze(-1), (0, 1))
            expected = functional.pad(expected.unsqueeze(-1), (0, 1))
        return divergence(logits, expected, temperature).sum() / num_items

    def loss_weights(self, train: Features, labels: tuple[str, ...]) -> list[float] | None:
        """Return the weight of each label in the training loss; None where all weigh the same."""
        import numpy as np

        if self.class_weights is None:
            return None
        if isinstance(self.class_weights, dict):
            return [float(self.class_weights[name]) for name in labels]
        targets = np.asarray([row["labels"] for row in train.dataset])
        if self.several:
            return balanced_positive_weights(targets.sum(0), len(targets))
        return balanced_class_weights(np.bincount(targets, minlength=len(labels)))

    def check_scorable(self, held_out: Features) -> None:
        """Raise DataError if F1 or the correlation is not defined for the rows."""
        import numpy as np

        targets = np.asarray([row["labels"] for row in held_out.dataset], dtype=np.float32)
        other = (
            "Score on other rows: give them as --task.dataset.eval-split, or hold out more by "
            "--task.dataset.eval-fraction."
        )
        if self.problem_type == "regression" and (targets == targets[0]).all():
            raise DataError(
                f"all {len(targets):,} evaluation targets are {targets[0]:g}; a correlation needs "
                f"two different ones. {other}"
            )
        if self.several and not targets.any():
            raise DataError(
                f"none of {len(targets):,} evaluation rows has a label; F1 needs one. {other}"
            )

    def score(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> Score:
        import numpy as np

        logits = np.asarray(prediction.predictions, dtype=np.float64)
        truth = np.asarray(prediction.label_ids)
        if self.problem_type == "regression":
            return score_numbers(logits[:, 0], truth)
        if self.several:
            return score_label_sets(logits, truth, labels, [*self.thresholds_of(labels).values()])
        return score_classes(logits, truth, labels)

    def thresholds_of(self, labels: tuple[str, ...]) -> dict[str, float]:
        if not self.several:
            return {}
        given = self.thresholds
        return {name: DEFAULT if given is None else given[name] for name in labels}

    @property
    def tunes(self) -> tuple[str, ...]:
        return ("thresholds",) if self.tune_thresholds else ()

    def tune(self, prediction: EvalPrediction, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return the threshold of each label by which it has the highest F1."""
        import numpy as np

        if not self.tune_thresholds:
            return {}
        probabilities = sigmoid(prediction.predictions)
        truth = np.asarray(prediction.label_ids)
        columns = zip(labels, probabilities.T, truth.T, strict=True)
        return {"thresholds": {name: best_threshold(*column) for name, *column in columns}}

    def tuned(self, options: Mapping[str, Any]) -> TextClassification:
        """Return the task with the thresholds as given options."""
        return replace(self, tune_thresholds=False, **options) if options else self

    def predictions(
        self, logits: Any, given: Features, labels: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        import numpy as np

        logits = np.asarray(logits, dtype=np.float64)
        if self.problem_type == "regression":
            return [{"value": float(row[0])} for row in logits]
        if self.several:
            thresholds = [*self.thresholds_of(labels).values()]
            return [
                {
                    "labels": [labels[i] for i in np.flatnonzero(row > thresholds)],
                    "scores": dict(zip(labels, map(float, row), strict=True)),
                }
                for row in sigmoid(logits)
            ]
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        return [
            {
                "label": labels[row.argmax()],
                "score": float(row.max()),
                "scores": dict(zip(labels, map(float, row), strict=True)),
            }
            for row in probabilities
        ]

    def row_results(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> list[RowResult]:
        import numpy as np

        logits = np.asarray(prediction.predictions, dtype=np.float64)
        truth = np.asarray(prediction.label_ids)
        references: list[Any]
        if self.problem_type == "regression":
            values, references = moments(logits[:, 0], truth), truth.tolist()
        elif self.several:
            guess = sigmoid(logits) > [*self.thresholds_of(labels).values()]
            values = f1_counts(guess.astype(int), truth.astype(int))
            references = [[labels[i] for i in np.flatnonzero(row)] for row in truth]
        else:
            values = (logits.argmax(1) == truth)[:, None]
            references = [labels[i] for i in truth]
        predictions = self.predictions(logits, held_out, labels)
        locations = map(held_out.locate, range(len(truth)))
        return to_row_results(locations, predictions, references, values)

    def statistic(self, means: Any) -> Any:
        if self.problem_type == "regression":
            return correlation_of_moments(means)
        return f1_of_counts(means) if self.several else super().statistic(means)

    @property
    def chart(self) -> Chart | None:
        if self.problem_type == "regression":
            return "scatter"
        return None if self.several else "confusion_matrix"

    def shown(self, result: RowResult) -> ShownResult:
        """Rank by the probability of the row's labels, or by the distance from its number."""
        prediction, reference = result.prediction, result.reference
        if self.problem_type == "regression":
            value = prediction["value"]
            return ShownResult(f"{value:.4g}", f"{reference:.4g}", (-abs(value - reference),))
        scores = prediction["scores"]
        if not self.several:
            right = scores[reference]
            detail = f"probability {prediction['score']:.3f}"
            if prediction["label"] != reference:
                detail += f", of the reference {right:.3f}"
            return ShownResult(prediction["label"], reference, (right,), detail)
        predicted, right = (", ".join(n) or "no label" for n in (prediction["labels"], reference))
        chances = [p if name in reference else 1 - p for name, p in scores.items()]
        rank = sum(math.log(max(p, 1e-12)) for p in chances) / len(chances)
        detail = f"mean probability of the reference {math.exp(rank):.3f}"
        return ShownResult(predicted, right, (rank,), detail)

    @property
    def evaluator_name(self) -> str | None:
        return None if self.problem_type == "regression" else "text-classification"

    def evaluator_row(self, inputs: Mapping[str, str | None]) -> dict[str, Any]:
        given = {name: text for name, text in inputs.items() if text is not None}
        columns = {"text": self.text_column}
        if self.text_pair_column:
            columns["text_pair"] = self.text_pair_column
        if given.keys() != columns.keys():
            raise DataError(f"inputs are {', '.join(given)}, not {' and '.join(columns)}.")
        return {columns[name]: text for name, text in given.items()}

    def metric_inputs(
        self,
        examples: Examples,
        predictions: Sequence[dict[str, Any]],
        labels: tuple[str, ...],
        columns: Collection[str],
    ) -> dict[str, list[Any]]:
        task, rows = self.resolved(examples), enumerate(examples.rows)
        return {
            "predictions": [self.as_target(prediction, labels) for prediction in predictions],
            "references": [task.target(examples, i, row, labels) for i, row in rows],
        }

    def as_target(self, prediction: dict[str, Any], labels: tuple[str, ...]) -> Any:
        """Return a prediction in the form of a target."""
        if self.problem_type == "regression":
            return prediction["value"]
        if self.several:
            return [float(name in prediction["labels"]) for name in labels]
        return labels.index(prediction["label"])

    def baseline(self, train: Features, held_out: Features) -> dict[str, float] | None:
        if self.problem_type != "single_label_classification":
            return None
        counts: dict[int, int] = {}
        for row in train.dataset:
            counts[row["labels"]] = counts.get(row["labels"], 0) + 1
        majority = max(counts, key=lambda label: counts[label])
        hits = sum(row["labels"] == majority for row in held_out.dataset)
        return {"majority class": hits / held_out.num_rows}

    @property
    def interface(self) -> Interface:
        columns = filter(None, (self.text_column, self.text_pair_column))
        if self.problem_type == "regression":
            return Interface(tuple(columns), "number")
        return Interface(tuple(columns), "labels" if self.several else "label")

    def row(self, text: str) -> dict[str, Any]:
        if self.text_pair_column:
            raise DataError(
                "a pair of texts is classified. Give dictionaries with the columns "
                f"{self.text_column!r} and {self.text_pair_column!r}."
            )
        return {self.text_column: text}

    def model_kwargs(self, labels: tuple[str, ...]) -> dict[str, Any]:
        return {
            "num_labels": max(len(labels), 1),
            "problem_type": self.problem_type,
            **(
                {
                    "id2label": dict(enumerate(labels)),
                    "label2id": {name: i for i, name in enumerate(labels)},
                }
                if labels
                else {}
            ),
        }


def read_target(examples: Examples, index: int, value: Any) -> float:
    """Return a cell as a finite float32. Raise DataError for anything else."""
    number = to_number(value)
    if number is None or not abs(number) <= LARGEST:
        raise DataError(f"{examples.locate(index)}: {value!r} is not a finite number.")
    return number


def join_texts(parts: list[list[int]], separator: int, max_length: int) -> tuple[list[int], bool]:
    """Join one or two texts with a separator, cutting the longer one first.

    Return the token ids, and whether any were cut. An empty text becomes the separator alone, since
    a model needs one token to read.
    """
    room = max_length - (len(parts) - 1)
    excess = sum(map(len, parts)) - room
    lengths = [len(part) for part in parts]
    for _ in range(max(excess, 0)):
        lengths[lengths.index(max(lengths))] -= 1
    ids: list[int] = []
    for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        ids += ([separator] if number else []) + part[:length]
    return ids or [separator], excess > 0
