"""A result in the shape of a transformers pipeline, for evaluate's evaluators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.hub.load import LoadedResult
from pipelines.inference.predict import predict_examples
from pipelines.inference.upstream import restore_names_for_evaluate


class Pipeline:
    """A result in the shape of a transformers pipeline.

    `evaluate.evaluator("text-classification")` and `evaluate.evaluator("question-answering")` take
    it as their `model_or_pipeline`.
    """

    def __init__(self, loaded: LoadedResult):
        """Raise DataError for a task that evaluate has no evaluator for."""
        name = loaded.recipe.task.evaluator_name
        if name is None:
            raise DataError(f"{loaded.recipe.name}: evaluate has no evaluator for its task.")
        self.loaded = loaded
        self.task = name
        restore_names_for_evaluate()

    def __call__(
        self,
        inputs: str | Mapping[str, str] | Iterable[str | Mapping[str, str]] | None = None,
        *,
        question: str | Iterable[str] | None = None,
        context: str | Iterable[str] | None = None,
        **ignored: Any,
    ) -> list[dict[str, Any]]:
        """Return a prediction for each text, pair of texts, or question with its context.

        Pairs are dictionaries of `text` and `text_pair`. Options of transformers' pipelines, such
        as `truncation`, are set by the recipe and ignored here. Raise DataError for inputs of
        another task.
        """
        if inputs is None:
            pairs = zip(as_list(question), as_list(context), strict=True)
            given = [{"question": asked, "context": read} for asked, read in pairs]
        else:
            given = [{"text": x} if isinstance(x, str) else dict(x) for x in as_list(inputs)]
        task = self.loaded.recipe.task
        return predict_examples(
            self.loaded, Examples([task.evaluator_row(each) for each in given], "input")
        )


def as_list(value: Any) -> list[Any]:
    """Return one text or one dictionary as a list of one, nothing as an empty list."""
    if value is None:
        return []
    return [value] if isinstance(value, str | Mapping) else list(value)
