"""Classification of a text or a pair of texts: one label, several labels, or regression."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from pipelines.data.rows import Examples
from pipelines.errors import DataError, NonFiniteError
from pipelines.metrics.bootstrap import bootstrap
from pipelines.tasks import label_forms
from pipelines.tasks.base import (
    Features,
    Objective,
    Score,
    Task,
    check_truncated,
    literal,
    text_of,
    token_ids,
)
from pipelines.tasks.cells import to_python, whole_number

KINDS = {str: "text", int: "number", float: "number", bool: "boolean"}
LARGEST = 3.4028234663852886e38  # of 32 bits, in which targets are learned
DECIMAL = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)")


@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """Predict labels, or a number, from the last token of a text."""

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
    """Of several labels in place of label_column: one column of 0 and 1 for each."""
    label_form: Literal["auto", "list", "multi_hot"] = "auto"
    """Of several labels: lists of names or ids, or vectors of 0 and 1. By default the training rows
    decide, and the result keeps their form."""
    label_names: tuple[str, ...] = ()
    """Names of the positions of multi_hot vectors; by default their numbers."""
    label_separator: str | None = None
    """Of several labels: the text between them, where a cell holds a text such as "a;b"."""
    max_length: Annotated[int, Ge(4)] = 128
    """Tokens kept of a row; the run reports how many rows were cut."""
    max_truncated_fraction: Annotated[float, Ge(0), Le(1)] = 1.0
    """Stop when a larger share of the rows was cut."""

    does: ClassVar[str] = "classifies texts"
    limits: ClassVar[str] = "It gives every text one of its labels, also a text of another kind."
    pipeline_tag: ClassVar[str] = "text-classification"

    objective: ClassVar[Objective] = "head"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    head: ClassVar[str | None] = "score"
    peft_task_type: ClassVar[str] = "SEQ_CLS"

    @property
    def several(self) -> bool:
        """Tell whether a row has any number of labels."""
        return self.problem_type == "multi_label_classification"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield options that are for several labels, and those that exclude each other."""
        columns, names = self.label_columns, self.label_names
        if not self.several:
            for option in ("label_columns", "label_form", "label_names", "label_separator"):
                if getattr(self, option) not in ((), None, "auto"):
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
    def form_is_known(self) -> bool:
        """Tell whether a row of labels can be read without the other rows."""
        vectors = self.label_form == "multi_hot" and bool(self.label_names)
        return not self.several or bool(self.label_columns) or vectors or self.label_form == "list"

    def resolved(self, train: Examples) -> TextClassification:
        """Return the task with the form of the label lists that the training rows have."""
        if self.form_is_known:
            return self
        where = f"{train.origin}: column {self.label_column!r}"
        cells = (row.get(self.label_column) for row in train.rows)
        read = (label_forms.list_of(cell, self.label_separator) for cell in cells)
        lists = [each for each in read if each is not None]
        declared = train.label_names.get(self.label_column, ())
        form: str | None = self.label_form
        if form == "auto":
            form = label_forms.find_form(lists, declared_ids=bool(declared))
        if form is None:
            raise DataError(
                f"{where}: every row holds [0, 1] or [1, 0], two ids or a vector. "
                "Say which by --task.label-form list or --task.label-form multi_hot."
            )
        if form == "list":
            if self.label_names:
                text = "holds lists of labels; --task.label-names is for multi_hot vectors."
                raise DataError(f"{where} {text}")
            return replace(self, label_form="list")
        width = label_forms.usual_length(lists)
        names = self.label_names or (declared if len(declared) == width else ())
        names = names or tuple(map(str, range(width)))
        if len(names) != width:
            text = f"{len(names)} --task.label-names for vectors of {width} values."
            raise DataError(f"{where}: {text}")
        if width < 2:
            raise DataError(f"{where}: vectors of {width} values; a classifier needs two labels.")
        return replace(self, label_form="multi_hot", label_names=names)

    def labels(self, train: Examples) -> tuple[str, ...]:
        """Return names from the dataset's ClassLabel, or from the rows in natural order."""
        if self.problem_type == "regression":
            return ()
        task = self.resolved(train)
        names = {n for i, row in enumerate(train.rows) for n in task.names(train, i, row)}
        if task.label_columns or task.label_form == "multi_hot":
            return task.label_columns or task.label_names
        if len(names) < 2:
            raise DataError(
                f"{train.origin}: column {self.label_column!r} holds one label, "
                f"{', '.join(names) or 'none'}; a classifier needs two."
            )
        known = train.label_names.get(self.label_column)
        return known or tuple(sorted(names, key=natural_order))

    @property
    def stratified_by(self):
        if self.problem_type == "regression":
            return None
        return ", ".join(self.label_columns) or self.label_column

    def columns(self):
        for option, column in super().columns():
            if option != "label_column" or not self.label_columns:
                yield option, column
        for column in self.label_columns:
            yield "label_columns", column

    def inputs(self, row):
        return tuple(row[c] for c in (self.text_column, self.text_pair_column) if c)

    def row_labels(self, examples, index, row):
        return self.names(examples, index, row) if self.stratified_by else ()

    def label_cautions(self, train: Examples) -> Iterator[str]:
        """Yield cautions about names of one label, about missing values and about scales."""
        if self.problem_type == "regression":
            return
        task, rows = self.resolved(train), enumerate(train.rows)
        counts = Counter(name for i, row in rows for name in set(task.names(train, i, row)))
        yield from label_forms.name_cautions(counts)
        if self.several:
            num_rows = len(list(train.rows))
            yield from label_forms.constant_cautions(counts, num_rows)
        else:
            yield from label_forms.list_cautions(counts)
            yield from label_forms.number_cautions(counts)

    def names(self, examples: Examples, index: int, row: dict[str, Any]) -> list[str]:
        """Return the names of a row's labels."""
        if self.label_columns:
            return self.names_of_columns(examples, index, row)
        value = to_python(row.get(self.label_column))
        blank = isinstance(value, str) and not value.strip() and self.label_separator is None
        if value is None or blank:
            hint = " For one 0/1 column a label use --task.label-columns." if self.several else ""
            raise DataError(
                f"{examples.where(index)}: no value in column {self.label_column!r}. "
                f"Columns: {', '.join(row)}.{hint}"
            )
        if not self.form_is_known:
            return self.resolved(examples).names(examples, index, row)
        values = self.listed(examples, index, value) if self.several else [value]
        if self.label_form == "multi_hot":
            try:
                return label_forms.read_vector(values, self.label_names)
            except ValueError as error:
                raise DataError(f"{examples.where(index)}: {error}") from None
        known = examples.label_names.get(self.label_column)
        if known is None:
            return [self.name(examples, index, value) for value in values]
        ids = [whole_number(value) for value in values]
        for value, number in zip(values, ids, strict=True):
            if number is None or not 0 <= number < len(known):
                where = examples.where(index)
                raise DataError(f"{where}: label {value} is outside 0 to {len(known) - 1}.")
        return [known[number] for number in ids if number is not None]

    def listed(self, examples: Examples, index: int, value: Any) -> list[Any]:
        """Return the list of labels in a cell. Raise DataError if it holds none."""
        values = label_forms.list_of(value, self.label_separator)
        if values is None:
            raise DataError(
                f"{examples.where(index)}: {value!r} is not a list of labels. A text cell may hold "
                '["a", "b"], or with --task.label-separator ";" a;b; for one 0/1 column a label '
                "use --task.label-columns."
            )
        return values

    def names_of_columns(self, examples: Examples, index: int, row: dict[str, Any]) -> list[str]:
        """Return the columns of a row that hold 1. Raise DataError unless all hold 0 or 1."""
        bits = {
            column: label_forms.bit(to_python(row.get(column))) for column in self.label_columns
        }
        for column, bit in bits.items():
            if bit is None:
                raise DataError(
                    f"{examples.where(index)}: column {column!r} holds {row.get(column)!r}, "
                    f"neither 0 nor 1. Columns: {', '.join(row)}."
                )
        return [column for column, bit in bits.items() if bit]

    def name(self, examples: Examples, index: int, value: Any) -> str:
        """Return the name of a label that is written in the rows: a text or a whole number.

        1, 1.0 and "1.0" are the label "1". Not 0.5, which asks for a regression, nor -1, which
        means "no label" on the Hub; and not the text "3" where other rows have the number 3.
        """
        number = whole_number(value)
        name = str(value if number is None else number)
        if not isinstance(value, str | int | float) or (number is None and is_fraction(value)):
            hint = "For numbers use --task.problem-type regression."
            if self.several:
                hint = "Labels are names, ids, or vectors of 0 and 1, not probabilities."
            elif isinstance(value, list):
                hint = "For several use --task.problem-type multi_label_classification."
            raise DataError(f"{examples.where(index)}: {value!r} is not one label. {hint}")
        if name == "-1":
            raise DataError(
                f"{examples.where(index)}: label -1 marks a row without a label. If it is a class "
                "of yours, give it a name."
            )
        first = to_python(next(iter(examples.rows)).get(self.label_column))
        if self.several:
            first = next(iter(label_forms.list_of(first, self.label_separator) or []), None)
        if type(first) in KINDS and KINDS[type(first)] != KINDS[type(value)]:
            raise DataError(
                f"{examples.where(index)}: label {value!r} is a {KINDS[type(value)]}, but the "
                f"first row has {first!r}, a {KINDS[type(first)]}."
            )
        return name

    def target(
        self, examples: Examples, index: int, row: dict[str, Any], labels: tuple[str, ...] | None
    ) -> Any:
        """Return what the model learns: a class id, a 0/1 vector, or a number."""
        if self.problem_type == "regression":
            raw = row.get(self.label_column)
            try:
                number = float(raw)  # type: ignore[arg-type]
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not abs(number) <= LARGEST:
                raise DataError(f"{examples.where(index)}: {raw!r} is not a finite number.")
            return number
        names = self.names(examples, index, row)
        if labels is None:
            return None
        for name in names:
            if name not in labels:
                raise DataError(
                    f"{examples.where(index)}: label {name!r} does not occur in the training "
                    f"rows. Known labels: {', '.join(labels)}."
                )
        if self.several:
            return [float(name in names) for name in labels]
        return labels.index(names[0])

    def example(self, examples, index, row, labels, *, labelled=True) -> tuple[list[str], Any]:
        columns = [c for c in (self.text_column, self.text_pair_column) if c]
        texts = [text_of(examples, index, row, column) for column in columns]
        return texts, self.target(examples, index, row, labels) if labelled else None

    def features(self, examples, tokenizer, labels, *, training, labelled=True) -> Features:
        task = self.resolved(examples) if labelled else self
        given = [
            task.example(examples, i, row, labels, labelled=labelled)
            for i, row in enumerate(examples.rows)
        ]
        if not given:
            raise DataError(f"{examples.origin}: no rows.")
        encoded = [
            token_ids(tokenizer, list(texts))
            for texts in zip(*(texts for texts, _ in given), strict=True)
        ]
        eos_token_id = int(tokenizer.eos_token_id)
        rows: list[dict[str, Any]] = []
        num_cut = 0
        for parts, (_, target) in zip(zip(*encoded, strict=True), given, strict=True):
            input_ids, cut = join(list(parts), eos_token_id, self.max_length)
            num_cut += cut
            rows.append({"input_ids": input_ids} | ({"labels": target} if labelled else {}))
        check_truncated(examples, num_cut, len(rows), self.max_truncated_fraction)
        report = {"rows": len(rows), "rows_cut": num_cut}
        lengths = [sum(map(len, parts)) + len(parts) - 1 for parts in zip(*encoded, strict=True)]
        return Features(rows, report, num_rows=len(rows), where=examples.where, lengths=lengths)

    def loss(self, outputs, labels, num_items):
        import torch.nn.functional as F

        logits = outputs.logits.float()
        if self.problem_type == "regression":
            total = F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
        elif self.several:
            total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        else:
            total = F.cross_entropy(logits, labels, reduction="sum")
        return total / num_items

    def check_scorable(self, held_out) -> None:
        """Raise DataError for rows on which F1 or a correlation is not defined."""
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

    def score(self, prediction, held_out, labels) -> Score:
        import numpy as np
        from scipy.special import logsumexp
        from scipy.stats import binomtest

        from pipelines import metrics

        logits = np.asarray(prediction.predictions, dtype=np.float64)
        truth = np.asarray(prediction.label_ids)
        if self.problem_type == "regression":
            x, y = logits[:, 0], truth
            num_wrong = len(x) - int(np.isfinite(x).sum())
            if num_wrong:
                raise NonFiniteError(f"{num_wrong:,} of {len(x):,} predictions are not finite.")
            values = correlations(x, y)
            values |= metrics.load("mse").compute(predictions=x, references=y)
            values["loss"] = values["mse"]
            x, y = x - x.mean(), y - y.mean()
            moments = np.stack([x, y, x * x, y * y, x * y], axis=1)
            return Score(values, "pearsonr", bootstrap(moments, correlation), num_rows=len(y))
        if self.several:
            loss = np.logaddexp(0, logits) - truth * logits
            guess, truth = (logits > 0).astype(int), truth.astype(int)
            f1 = metrics.load("f1", "multilabel")
            values = {
                f"{average}_f1": f1.compute(predictions=guess, references=truth, average=average)[
                    "f1"
                ]
                for average in ("micro", "macro")
            }
            values["loss"] = float(loss.mean())
            rows = np.stack([2 * (guess & truth).sum(1), (guess + truth).sum(1)], axis=1)
            interval = bootstrap(rows, lambda m: m[:, 0] / np.maximum(m[:, 1], 1e-12))
            return Score(values, "micro_f1", interval, num_rows=len(truth))
        guess = logits.argmax(1)
        every = list(range(len(labels)))
        f1 = metrics.load("f1")
        per_class = f1.compute(predictions=guess, references=truth, average=None, labels=every)
        macro = f1.compute(predictions=guess, references=truth, average="macro", labels=every)
        confusion = metrics.load("confusion_matrix").compute(
            predictions=guess, references=truth, labels=every
        )["confusion_matrix"]
        losses = logsumexp(logits, axis=1) - logits[np.arange(len(truth)), truth]
        values = {
            "loss": float(losses.mean()),
            **metrics.load("accuracy").compute(predictions=guess, references=truth),
            "macro_f1": macro["f1"],
            "f1_per_class": dict(zip(labels, map(float, per_class["f1"]), strict=True)),
            "confusion_matrix": np.asarray(confusion).tolist(),
        }
        hits = binomtest(int((guess == truth).sum()), len(truth)).proportion_ci(method="wilson")
        return Score(values, "accuracy", (hits.low, hits.high), num_rows=len(truth))

    def predictions(self, logits, given, labels):
        import numpy as np

        logits = np.asarray(logits, dtype=np.float64)
        if self.problem_type == "regression":
            return [{"value": float(row[0])} for row in logits]
        if self.several:
            shares = 1 / (1 + np.exp(-logits))
            return [
                {
                    "labels": [labels[i] for i in np.flatnonzero(row > 0.5)],
                    "scores": dict(zip(labels, map(float, row), strict=True)),
                }
                for row in shares
            ]
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        return [
            {
                "label": labels[row.argmax()],
                "score": float(row.max()),
                "scores": dict(zip(labels, map(float, row), strict=True)),
            }
            for row in shares
        ]

    @property
    def evaluator_name(self):
        return None if self.problem_type == "regression" else "text-classification"

    def evaluator_row(self, inputs):
        given = {name: text for name, text in inputs.items() if text is not None}
        columns = {"text": self.text_column}
        if self.text_pair_column:
            columns["text_pair"] = self.text_pair_column
        if given.keys() != columns.keys():
            raise DataError(f"inputs are {', '.join(given)}, not {' and '.join(columns)}.")
        return {columns[name]: text for name, text in given.items()}

    def metric_inputs(self, examples, predictions, labels, columns):
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

    def baseline(self, train, held_out) -> dict[str, float] | None:
        if self.problem_type != "single_label_classification":
            return None
        counts: dict[int, int] = {}
        for row in train.dataset:
            counts[row["labels"]] = counts.get(row["labels"], 0) + 1
        majority = max(counts, key=lambda label: counts[label])
        hits = sum(row["labels"] == majority for row in held_out.dataset)
        return {"majority class": hits / held_out.num_rows}

    def row(self, text):
        if self.text_pair_column:
            raise DataError(
                "a pair of texts is classified. Give dictionaries with the columns "
                f"{self.text_column!r} and {self.text_pair_column!r}."
            )
        return {self.text_column: text}

    def example_row(self):
        columns = [c for c in (self.text_column, self.text_pair_column) if c]
        return dict.fromkeys(columns, "A text to classify.")

    def example_lines(self):
        text = '["A text to classify.", "And another one."]'
        if self.text_pair_column:
            text = '["A text" + tokenizer.eos_token + "and its second part."]'
        cut = f"truncation=True, max_length={self.max_length}"
        lines = [
            f'batch = tokenizer({text}, padding=True, {cut}, return_tensors="pt")',
            "with torch.inference_mode():",
            "    logits = model(**batch).logits",
        ]
        if self.problem_type == "regression":
            return [*lines, "print(logits[:, 0].tolist())"]
        if self.several:
            found = "[[model.config.id2label[i] for i in row.nonzero()[:, 0].tolist()] "
            return [*lines, f"print({found}for row in logits > 0])"]
        return [*lines, "print([model.config.id2label[i] for i in logits.argmax(-1).tolist()])"]

    def head_arguments(self, labels):
        kind = f"problem_type={literal(self.problem_type)}"
        if not labels:
            return [kind, "num_labels=1"]
        return [
            kind,
            "num_labels=len(labels)",
            "id2label=dict(enumerate(labels))",
            "label2id={name: i for i, name in enumerate(labels)}",
        ]

    def model_kwargs(self, labels):
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


def is_fraction(value: Any) -> bool:
    """Tell a number from a name: a float, or a text with a decimal point."""
    return isinstance(value, float) or DECIMAL.fullmatch(str(value)) is not None


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts "2" before "10"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def join(parts: list[list[int]], separator: int, max_length: int) -> tuple[list[int], bool]:
    """Join one or two texts with a separator, cutting the longer one first.

    An empty text becomes the separator alone, since a model needs one token to read.
    """
    room = max_length - (len(parts) - 1)
    excess = sum(map(len, parts)) - room
    kept = [len(part) for part in parts]
    for _ in range(max(excess, 0)):
        kept[kept.index(max(kept))] -= 1
    ids: list[int] = []
    for number, (part, length) in enumerate(zip(parts, kept, strict=True)):
        ids += ([separator] if number else []) + part[:length]
    return ids or [separator], excess > 0


def correlations(predictions: Any, references: Any) -> dict[str, Any]:
    """Return Pearson's and Spearman's correlation, 0.0 where all predictions are equal.

    scipy gives NaN there, or the correlation of 32 bits' rounding. A model that predicts one number
    for all rows explains none of the variance of the targets, hence 0; its mean squared error is
    still defined.
    """
    import numpy as np

    from pipelines import metrics

    names = ("pearsonr", "spearmanr")
    if np.ptp(predictions) <= 1e-6 * np.abs(predictions).max():
        return dict.fromkeys(names, 0.0)
    found: dict[str, Any] = {}
    for name in names:
        found |= metrics.load(name).compute(predictions=predictions, references=references)
    return found


def correlation(means: Any) -> Any:
    """Return Pearson's r from mean moments (x, y, xx, yy, xy), 0 where x or y does not vary.

    Rounding leaves a variance of about 1e-16 of the second moment where there is none.
    """
    import numpy as np

    x, y, xx, yy, xy = means.T
    variances = (xx - x * x, yy - y * y)
    vary = (variances[0] > 1e-12 * xx) & (variances[1] > 1e-12 * yy)
    r = (xy - x * y) / np.sqrt(np.where(vary, variances[0] * variances[1], 1.0))
    return np.where(vary, np.clip(r, -1, 1), 0.0)
