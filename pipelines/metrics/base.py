"""Base classes of the metrics, which check each value before Arrow casts it.

`evaluate` checks only the first row and casts values to the types of `features`: a probability of
0.7 would become class 0, and a list in place of a text its `repr`.
"""

# mypy: allow-subclassing-any
# evaluate has no type hints

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import datasets
import evaluate


class Metric(evaluate.Metric):
    """An `evaluate.Metric` whose errors name the row of a value that cannot be scored.

    Subclasses define `prediction` and `reference`, which return a value in the form of
    `feature_types` or raise ValueError.
    """

    inputs = ""

    def prediction(self, value: Any) -> Any:
        raise NotImplementedError

    def reference(self, value: Any) -> Any:
        return self.prediction(value)

    def feature_types(self) -> Any:
        """Return the `datasets.Features` of a row, or a list of alternatives."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(type(self).__doc__),
            citation="",
            inputs_description=self.inputs,
            features=self.feature_types(),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **options: Any) -> None:
        """Add rows.

        Raise ValueError for no rows, unequal numbers of rows, and wrong values.
        """
        guesses, gold = self.convert_rows(predictions, references)
        super().add_batch(predictions=guesses, references=gold, **options)

    def add(self, *, prediction: Any = None, reference: Any = None, **options: Any) -> None:
        """Add one row. Raise ValueError for wrong values."""
        self.add_batch(predictions=[prediction], references=[reference], **options)

    def convert_rows(self, predictions: Any, references: Any) -> tuple[list[Any], list[Any]]:
        """Return the rows in the form of `feature_types`.

        Raise ValueError as `add_batch` does.
        """
        guesses = convert_column("predictions", predictions, self.prediction)
        gold = convert_column("references", references, self.reference)
        self.check_pairs(guesses, gold)
        if not guesses:
            raise ValueError(f"{self.name}: no rows to score.")
        return guesses, gold

    def check_pairs(self, guesses: list[Any], gold: list[Any]) -> None:
        """Raise ValueError unless each prediction has its reference."""
        if len(guesses) != len(gold):
            raise ValueError(f"{self.name}: {len(guesses)} predictions, {len(gold)} references.")


def convert_column(name: str, column: Any, convert: Callable[[Any], Any]) -> list[Any]:
    """Return a column with each value converted.

    Raise ValueError with the number of the row, from 0.
    """
    if column is None or isinstance(column, str | dict):
        raise ValueError(f"{name}: {column!r} is not a list of rows.")
    values = []
    for row, value in enumerate(column):
        try:
            # NumPy scalars, arrays and tensors have `tolist`
            values.append(convert(value.tolist() if hasattr(value, "tolist") else value))
        except ValueError as error:
            raise ValueError(f"{name}[{row}]: {error}") from None
    return values


def text(value: Any) -> str:
    """Return a text. Raise ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text.")
    return value


def texts(value: Any) -> list[str]:
    """Return the reference texts of a row, from a text or a list of texts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is neither a text nor a list of texts.")
    if not value:
        raise ValueError("no reference. Give the row one, or leave the row out.")
    return [text(each) for each in value]


def number(value: Any) -> float:
    """Return a number. Raise ValueError for anything else."""
    if not isinstance(value, Real):
        raise ValueError(f"{value!r} is not a number.")
    return float(value)


def whole(value: Any) -> int:
    """Return a whole number. Raise ValueError for anything else, fractions included."""
    if not isinstance(value, Integral) and not number(value).is_integer():
        raise ValueError(f"{value!r} is not a whole number.")
    return int(value)


class LabelMetric(Metric):
    """A metric of class names or ids, or of 0/1 lists (config `multilabel`)."""

    inputs = "Names or ids of classes, or for config `multilabel` a list of 0 and 1 for each row."

    @property
    def multilabel(self) -> bool:
        """Whether a row may have any number of labels."""
        return bool(self.config_name == "multilabel")

    def feature_types(self) -> list[datasets.Features]:
        ids = datasets.Value("int64")
        kinds = [datasets.Sequence(ids)] if self.multilabel else [datasets.Value("string"), ids]
        return [datasets.Features({"predictions": kind, "references": kind}) for kind in kinds]

    def prediction(self, value: Any) -> str | int | list[int]:
        if not self.multilabel:
            return value if isinstance(value, str) else whole(value)
        if not isinstance(value, list | tuple) or not all(each in (0, 1) for each in value):
            raise ValueError(f"{value!r} is not a list of 0 and 1, one for each label.")
        return [int(each) for each in value]

    def check_pairs(self, guesses: list[Any], gold: list[Any]) -> None:
        """Raise ValueError also for names mixed with ids, and for rows of unequal widths."""
        super().check_pairs(guesses, gold)
        every = [*guesses, *gold]
        if self.multilabel:
            widths = sorted({len(row) for row in every})
            if len(widths) > 1:
                raise ValueError(f"{self.name}: rows of {widths[0]} and of {widths[-1]} labels.")
            return
        names = [value for value in every if isinstance(value, str)]
        if names and len(names) < len(every):
            ids = [value for value in every if not isinstance(value, str)]
            raise ValueError(
                f"{self.name}: {names[0]!r} is the name of a class, {ids[0]!r} an id. Give names "
                "or ids for both; an evaluator's `label_mapping` maps names to ids."
            )


class NumberMetric(Metric):
    """A metric of numbers."""

    inputs = "Numbers, one for each row."

    def feature_types(self) -> datasets.Features:
        value = datasets.Value("float64")
        return datasets.Features({"predictions": value, "references": value})

    def prediction(self, value: Any) -> float:
        return number(value)


class TextMetric(Metric):
    """A metric of texts with one or more references each."""

    inputs = "predictions: texts; references: for each a text, or a list of at least one."

    def feature_types(self) -> datasets.Features:
        value = datasets.Value("string")
        return datasets.Features({"predictions": value, "references": [value]})

    def prediction(self, value: Any) -> str:
        return text(value)

    def reference(self, value: Any) -> list[str]:
        return texts(value)


class AnswerMetric(Metric):
    """A metric of answers to questions, which are matched by their `id`."""

    inputs = 'predictions: {"id", "prediction_text"}; references: {"id", "answers"}.'

    def feature_types(self) -> datasets.Features:
        value = datasets.Value("string")
        answers = {"text": [value], "answer_start": [datasets.Value("int32")]}
        return datasets.Features(
            {
                "predictions": {"id": value, "prediction_text": value},
                "references": {"id": value, "answers": answers},
            }
        )

    def check_pairs(self, guesses: list[Any], gold: list[Any]) -> None:
        """Raise ValueError also for two rows with one id, of which one answer would be scored."""
        super().check_pairs(guesses, gold)
        for name, rows in (("predictions", guesses), ("references", gold)):
            for identity, count in Counter(row["id"] for row in rows).most_common(1):
                if count > 1:
                    text = f"{count} {name} have the id {identity!r}. Give each row its own."
                    raise ValueError(f"{self.name}: {text}")

    def prediction(self, value: Any) -> dict[str, Any]:
        row = with_keys(value, "id", "prediction_text")
        return {"id": text(row["id"]), "prediction_text": text(row["prediction_text"])}

    def reference(self, value: Any) -> dict[str, Any]:
        row = with_keys(value, "id", "answers")
        answers = with_keys(row["answers"], "text", "answer_start")
        texts = [text(each) for each in answers["text"]]
        starts = [whole(each) for each in answers["answer_start"]]
        return {"id": text(row["id"]), "answers": {"text": texts, "answer_start": starts}}


def with_keys(value: Any, *keys: str) -> dict[str, Any]:
    """Return a dictionary. Raise ValueError unless it has the keys."""
    if not isinstance(value, dict) or not all(key in value for key in keys):
        raise ValueError(f"{value!r} is not a dictionary with {' and '.join(map(repr, keys))}.")
    return value
