"""Patches of evaluate, held by tests/inference/test_inference_upstream.py."""

from __future__ import annotations

import importlib
import types
from typing import Any


def restore_names_for_evaluate() -> None:
    """Give evaluate what transformers 5 has dropped and it still asks for.

    It compares every pipeline with `transformers.TFPreTrainedModel`, and knows only tasks that
    transformers lists; question answering is no longer there. It has no argument for either.
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
