"""The allow-list of tasks that a recipe.json may name."""

from pipelines.data.source import DatasetSource
from pipelines.errors import DataError
from pipelines.tasks.base import Task
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.generation import Generation
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.preference import PreferenceTuning
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

TASKS: dict[str, type[Task]] = {
    task.__name__: task
    for task in (
        CausalLM,
        TextClassification,
        QuestionAnswering,
        InstructionTuning,
        PreferenceTuning,
    )
}

__all__ = [
    "TASKS",
    "CausalLM",
    "DataError",
    "DatasetSource",
    "Generation",
    "InstructionTuning",
    "PreferenceTuning",
    "QuestionAnswering",
    "Task",
    "TextClassification",
]
