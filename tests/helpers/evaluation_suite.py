"""A suite for `evaluate.EvaluationSuite.load`; the test sets its data and its metric."""

import evaluate
from evaluate.evaluation_suite import SubTask


class Suite(evaluate.EvaluationSuite):
    """One classification task."""

    def __init__(self, name):
        super().__init__(name)
        self.suite = [
            SubTask(
                task_type="text-classification",
                data="json",
                split="train",
                args_for_task={"input_column": "text", "label_column": "label"},
            )
        ]
