"""The allow-list of tasks that a recipe.json may name."""

from pipelines.tasks.base import DataError, DatasetSource, Task
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

TASKS: dict[str, type[Task]] = {
    task.__name__: task for task in (CausalLM, TextClassification, QuestionAnswering)
}

__all__ = [
    "TASKS",
    "CausalLM",
    "DataError",
    "DatasetSource",
    "QuestionAnswering",
    "Task",
    "TextClassification",
]
