"""Classification of a text or a pair of texts: one label, several labels, or regression."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from pipelines.tasks.base import (
    DataError,
    Examples,
    Features,
    Score,
    Task,
    bootstrap,
    check_truncated,
    literal,
    text_of,
    token_ids,
)

KINDS = {str: "text", int: "number", bool: "truth value"}
DECIMAL = re.compile(r"[+-]?\d*\.\d+")


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
    max_length: Annotated[int, Ge(4)] = 128
    """Tokens kept of a row; the run reports how many rows were cut."""
    max_truncated_fraction: Annotated[float, Ge(0), Le(1)] = 1.0
    """Stop when a larger share of the rows was cut."""

    does: ClassVar[str] = "classifies texts"
    limits: ClassVar[str] = "It gives every text one of its labels, also a text of another kind."
    pipeline_tag: ClassVar[str] = "text-classification"

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    head: ClassVar[str | None] = "score"
    peft_task_type: ClassVar[str] = "SEQ_CLS"

    def labels(self, train: Examples) -> tuple[str, ...]:
        """Return names from the dataset's ClassLabel, or from the rows in natural order."""
        if self.problem_type == "regression":
            return ()
        names = {n for i, row in enumerate(train.rows) for n in self.names(train, i, row)}
        if len(names) < 2:
            raise DataError(
                f"{train.origin}: column {self.label_column!r} holds one label, "
                f"{', '.join(names) or 'none'}; a classifier needs two."
            )
        known = train.label_names.get(self.label_column)
        return known or tuple(sorted(names, key=natural_order))

    @property
    def stratified_by(self):
        return None if self.problem_type == "regression" else self.label_column

    def inputs(self, row):
        return tuple(row[c] for c in (self.text_column, self.text_pair_column) if c)

    def row_labels(self, examples, index, row):
        return self.names(examples, index, row) if self.stratified_by else ()

    def names(self, examples: Examples, index: int, row: dict[str, Any]) -> list[str]:
        """Return the names of a row's labels."""
        value = row.get(self.label_column)
        if value is None or value == "":
            raise DataError(
                f"{examples.where(index)}: no value in column {self.label_column!r}. "
                f"Columns: {', '.join(row)}."
            )
        several = self.problem_type == "multi_label_classification"
        if several and not isinstance(value, list):
            raise DataError(f"{examples.where(index)}: {value!r} is not a list of labels.")
        values = value if several else [value]
        known = examples.label_names.get(self.label_column)
        if known is None:
            return [self.name(examples, index, value) for value in values]
        for value in values:
            if not 0 <= value < len(known):
                where = examples.where(index)
                raise DataError(f"{where}: label {value} is outside 0 to {len(known) - 1}.")
        return [known[value] for value in values]

    def name(self, examples: Examples, index: int, value: Any) -> str:
        """Return the name of a label that is written in the rows: a text or a whole number.

        Not 0.5, which asks for a regression, nor -1, which means "no label" on the Hub; and not
        the text "3" where other rows have the number 3.
        """
        if not isinstance(value, (str, int)) or DECIMAL.fullmatch(str(value)):
            raise DataError(
                f"{examples.where(index)}: {value!r} is not one label. For numbers use "
                "--task.problem-type regression."
            )
        if str(value) == "-1":
            raise DataError(
                f"{examples.where(index)}: label -1 marks a row without a label. If it is a class "
                "of yours, give it a name."
            )
        first = next(iter(examples.rows)).get(self.label_column)
        first = first[0] if isinstance(first, list) and first else first
        if isinstance(first, (str, int)) and type(first) is not type(value):
            raise DataError(
                f"{examples.where(index)}: label {value!r} is a {KINDS[type(value)]}, but the "
                f"first row has {first!r}, a {KINDS[type(first)]}."
            )
        return str(value)

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
            if not math.isfinite(number):
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
        if self.problem_type == "multi_label_classification":
            return [float(name in names) for name in labels]
        return labels.index(names[0])

    def example(self, examples, index, row, labels, *, labelled=True) -> tuple[list[str], Any]:
        columns = [c for c in (self.text_column, self.text_pair_column) if c]
        texts = [text_of(examples, index, row, column) for column in columns]
        return texts, self.target(examples, index, row, labels) if labelled else None

    def features(self, examples, tokenizer, labels, *, training, labelled=True) -> Features:
        given = [
            self.example(examples, i, row, labels, labelled=labelled)
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
        elif self.problem_type == "multi_label_classification":
            total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        else:
            total = F.cross_entropy(logits, labels, reduction="sum")
        return total / num_items

    def score(self, prediction, held_out, labels) -> Score:
        import numpy as np
        from scipy.special import logsumexp
        from scipy.stats import binomtest

        from pipelines import metrics

        logits = np.asarray(prediction.predictions, dtype=np.float64)
        truth = np.asarray(prediction.label_ids)
        if self.problem_type == "regression":
            x, y = logits[:, 0], truth
            values: dict[str, Any] = {}
            for name in ("pearsonr", "spearmanr", "mse"):
                values |= metrics.load(name).compute(predictions=x, references=y)
            values["loss"] = values["mse"]
            moments = np.stack([x, y, x * x, y * y, x * y], axis=1)
            return Score(values, "pearsonr", bootstrap(moments, correlation), num_rows=len(y))
        if self.problem_type == "multi_label_classification":
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
        if self.problem_type == "multi_label_classification":
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

    def guess(self, prediction: dict[str, Any], ids: dict[str, int]) -> Any:
        """Return a prediction in the form of a target."""
        if self.problem_type == "regression":
            return prediction["value"]
        if self.problem_type == "multi_label_classification":
            return [float(name in prediction["labels"]) for name in ids]
        return ids[prediction["label"]]

    def baseline(self, train, held_out) -> dict[str, float] | None:
        if self.problem_type != "single_label_classification":
            return None
        counts: dict[int, int] = {}
        for row in train.dataset:
            counts[row["labels"]] = counts.get(row["labels"], 0) + 1
        majority = max(counts, key=lambda label: counts[label])
        hits = sum(row["labels"] == majority for row in held_out.dataset)
        return {"majority class": hits / held_out.num_rows}

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
        if self.problem_type == "multi_label_classification":
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


def correlation(means: Any) -> Any:
    """Return Pearson's r from mean moments (x, y, xx, yy, xy)."""
    import numpy as np

    x, y, xx, yy, xy = means.T
    return (xy - x * y) / np.sqrt(np.maximum((xx - x * x) * (yy - y * y), 1e-300))
