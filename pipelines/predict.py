"""Labels, numbers or answers for rows that have none."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.hub import Loaded, Precision, load_adapter
from pipelines.output import answer_file
from pipelines.report import quietly
from pipelines.tasks import QuestionAnswering, TextClassification
from pipelines.tasks.base import DataError, Examples


@quietly()
def predict(loaded: Loaded, examples: Examples, *, batch_size: int = 32) -> list[dict[str, Any]]:
    """Return a prediction for each row, in order. Raise DataError for a language model."""
    task = loaded.recipe.task
    if task.head is None:
        raise DataError(
            f"{loaded.recipe.name}: a language model has no labels to predict. It writes, by "
            "`gpt2-recipes generate`."
        )
    given = task.features(examples, loaded.tokenizer, loaded.labels, training=False, labelled=False)
    collate = task.collate(int(loaded.tokenizer.pad_token_id or 0))
    longest_first = sorted(
        range(len(given.dataset)), key=lambda row: -len(given.dataset[row]["input_ids"])
    )
    logits: dict[int, Any] = {}
    for start in range(0, len(longest_first), batch_size):
        rows = longest_first[start : start + batch_size]
        batch = collate([given.dataset[row] for row in rows])
        inputs = {name: value.to(loaded.model.device) for name, value in batch.items()}
        with torch.inference_mode():
            outputs = loaded.model(**inputs)
        found = tuple(value for name, value in outputs.items() if name.endswith("logits"))
        reduced = task.reduce_logits(found if len(found) > 1 else found[0], None)
        logits |= zip(rows, reduced.float().cpu().numpy(), strict=True)
    return task.predictions([logits[row] for row in sorted(logits)], given, loaded.labels)


@quietly()
def predict_file(
    repo: str,
    file: Path,
    *,
    out: Path | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    batch_size: int = 32,
    keep: Sequence[str] | None = None,
) -> None:
    """Answer each row of a file, as `pipelines.output.answer_file` does."""
    loaded = load_adapter(repo, revision, base=base, precision=precision)
    made_by = {"command": "predict", "result": loaded.sha256, "base": base, "precision": precision}
    predict_rows(loaded, file, out, made_by, batch_size=batch_size, keep=keep)


def predict_rows(
    loaded: Loaded,
    file: Path,
    out: Path | None,
    made_by: dict[str, Any],
    *,
    batch_size: int = 32,
    keep: Sequence[str] | None = None,
) -> None:
    """Answer each row of a file with what is loaded.

    Short rows are sorted over 64 batches, by which little padding is left; of long ones, which take
    longer, fewer are answered before they are written.
    """

    def answers(examples: Examples) -> list[dict[str, Any]]:
        return predict(loaded, examples, batch_size=batch_size)

    sizes = {"chunk_size": 64 * batch_size, "chunk_characters": 8192 * batch_size}
    answer_file(file, answers, out, made_by, keep=keep, **sizes)


class Pipeline:
    """A classifier or an answerer in the shape of a transformers pipeline.

    `evaluate.evaluator("text-classification")` and `evaluate.evaluator("question-answering")` take
    it as their `model_or_pipeline`.
    """

    def __init__(self, loaded: Loaded):
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
