"""Recipes that pretrain and fine-tune GPT-2-style models.

The names below are the public Python API. Each is imported at its first use, so that a recipe, or
`--help`, imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipelines.collector import collecting_rarely
from pipelines.log import quiet_bitsandbytes

if TYPE_CHECKING:
    from pipelines.data.source import DatasetSource as DatasetSource
    from pipelines.data.source import MixedSource as MixedSource
    from pipelines.errors import CheckpointError as CheckpointError
    from pipelines.errors import DataError as DataError
    from pipelines.errors import NonFiniteError as NonFiniteError
    from pipelines.errors import Preempted as Preempted
    from pipelines.errors import Problem as Problem
    from pipelines.errors import PublishError as PublishError
    from pipelines.errors import RecipeError as RecipeError
    from pipelines.errors import RunError as RunError
    from pipelines.evaluation.evaluate import Evaluation as Evaluation
    from pipelines.evaluation.evaluate import evaluate as evaluate
    from pipelines.flow import run as run
    from pipelines.hub.publish import publish as publish
    from pipelines.inference.loaded_model import LoadedModel as LoadedModel
    from pipelines.inference.loaded_model import generate as generate
    from pipelines.inference.loaded_model import load as load
    from pipelines.inference.loaded_model import predict as predict
    from pipelines.inference.merge import Merged as Merged
    from pipelines.inference.merge import merge as merge
    from pipelines.recipe.recipe import Recipe as Recipe
    from pipelines.recipe.values import NF4 as NF4
    from pipelines.recipe.values import Distillation as Distillation
    from pipelines.recipe.values import Int8 as Int8
    from pipelines.recipe.values import Lora as Lora
    from pipelines.recipe.values import Model as Model
    from pipelines.recipe.values import Scratch as Scratch
    from pipelines.recipe.values import Tokenizer as Tokenizer
    from pipelines.recipe.values import Train as Train
    from pipelines.recipe_cli import main as main
    from pipelines.tasks.causal_lm import CausalLM as CausalLM
    from pipelines.tasks.generation import Continuation as Continuation
    from pipelines.tasks.generation import Generation as Generation
    from pipelines.tasks.instruction import InstructionTuning as InstructionTuning
    from pipelines.tasks.preference import PreferenceTuning as PreferenceTuning
    from pipelines.tasks.question_answering import QuestionAnswering as QuestionAnswering
    from pipelines.tasks.text_classification import TextClassification as TextClassification

_HOMES = {
    "NF4": "recipe.values",
    "CausalLM": "tasks.causal_lm",
    "CheckpointError": "errors",
    "Continuation": "tasks.generation",
    "DataError": "errors",
    "DatasetSource": "data.source",
    "MixedSource": "data.source",
    "Evaluation": "evaluation.evaluate",
    "Generation": "tasks.generation",
    "InstructionTuning": "tasks.instruction",
    "Int8": "recipe.values",
    "LoadedModel": "inference.loaded_model",
    "Distillation": "recipe.values",
    "Lora": "recipe.values",
    "Merged": "inference.merge",
    "Model": "recipe.values",
    "NonFiniteError": "errors",
    "Preempted": "errors",
    "PreferenceTuning": "tasks.preference",
    "Problem": "errors",
    "PublishError": "errors",
    "QuestionAnswering": "tasks.question_answering",
    "Recipe": "recipe.recipe",
    "RecipeError": "errors",
    "RunError": "errors",
    "Scratch": "recipe.values",
    "TextClassification": "tasks.text_classification",
    "Tokenizer": "recipe.values",
    "Train": "recipe.values",
    "evaluate": "evaluation.evaluate",
    "generate": "inference.loaded_model",
    "load": "inference.loaded_model",
    "main": "recipe_cli",
    "merge": "inference.merge",
    "predict": "inference.loaded_model",
    "publish": "hub.publish",
    "run": "flow",
}
"""The module that defines each public name.

No public name equals the name of a module directly in this package: importing that module would
replace the attribute of the same name here by the module.
"""
__all__ = list(_HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # type checkers read the imports above, and know that there are no others

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        quiet_bitsandbytes()  # which peft imports
        with collecting_rarely():
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
