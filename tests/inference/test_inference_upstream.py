"""What pipelines/inference/upstream.py patches in evaluate is still what evaluate asks for."""

import importlib
import inspect

from pipelines.inference.upstream import restore_names_for_evaluate


def test_evaluate_still_asks_for_what_is_restored():
    base = importlib.import_module("evaluate.evaluator.base")
    tasks = importlib.import_module("evaluate.evaluator")
    assert "transformers.TFPreTrainedModel" in inspect.getsource(base)
    assert "check_pipeline_task(" in inspect.getsource(tasks.check_task)
    restore_names_for_evaluate()
    assert base.transformers.TFPreTrainedModel == ()
    assert type(tasks.evaluator("question-answering")).__name__ == "QuestionAnsweringEvaluator"
