"""A result in the shape of a transformers pipeline, for evaluate's evaluators."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterable
from typing import Any

from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.hub.load import LoadedResult
from pipelines.inference.predict import predict
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification


class Pipeline:
    """A classifier or an answerer in the shape of a transformers pipeline.

    `evaluate.evaluator("text-classification")` and `evaluate.evaluator("question-answering")` take
    it as their `model_or_pipeline`.
    """

    def __init__(self, loaded: LoadedResult):
        """Raise DataError for a task that evaluate has no evaluator for."""
        task = loaded.recipe.task
        plain = isinstance(task, TextClassification) and loaded.labels
        if not isinstance(task, QuestionAnswering) and not plain:
            raise DataError(f"{loaded.recipe.name}: it neither classifies nor answers.")
        self.loaded = loaded
        self.task = "text-classification" if plain else "question-answering"
        let_evaluate_take_it()

    def __call__(
        self,
        inputs: str | Iterable[str | dict[str, str]] | None = None,
        *,
        question: str | Iterable[str] | None = None,
        context: str | Iterable[str] | None = None,
        **ignored: Any,
    ) -> list[dict[str, Any]]:
        """Return a prediction for each text, pair of texts, or question with its context.

        Pairs are dictionaries of `text` and `text_pair`. Options of transformers' pipelines, such
        as `truncation`, are set by the recipe and ignored here.
        """
        task: Any = self.loaded.recipe.task
        if isinstance(task, QuestionAnswering):
            assert question is not None and context is not None
            pairs = zip(listed(question), listed(context), strict=True)
            columns = (task.question_column, task.context_column)
            rows = [dict(zip(columns, pair, strict=True)) for pair in pairs]
        else:
            assert inputs is not None
            names = {"text": task.text_column, "text_pair": task.text_pair_column}
            rows = [
                {names[k]: v for k, v in ({"text": x} if isinstance(x, str) else x).items()}
                for x in listed(inputs)
            ]
        return predict(self.loaded, Examples(rows, "inputs"))


def listed(value: Any) -> list[Any]:
    """Return one text as a list of one."""
    return [value] if isinstance(value, str | dict) else list(value)


def let_evaluate_take_it() -> None:
    """Give evaluate what transformers 5 has dropped and it still asks for.

    It compares every pipeline with `transformers.TFPreTrainedModel`, and knows only tasks that
    transformers lists; question answering is no longer there.
    """
    import transformers
    from transformers.pipelines import SUPPORTED_TASKS

    base: Any = importlib.import_module("evaluate.evaluator.base")
    base.transformers = types.SimpleNamespace(
        PreTrainedModel=transformers.PreTrainedModel, TFPreTrainedModel=()
    )
    tasks: Any = importlib.import_module("evaluate.evaluator")
    tasks.SUPPORTED_PIPELINE_TASKS = SUPPORTED_TASKS | {"question-answering": {}}
    tasks.check_pipeline_task = tasks.SUPPORTED_PIPELINE_TASKS.__contains__
