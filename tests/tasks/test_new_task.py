"""A task of an existing objective is one class and its name in TASKS."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch.nn.functional as F

from helpers.factories import method
from pipelines.data.encoded_rows import EncodedSplit
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError
from pipelines.flow import run
from pipelines.hub.load import load_result
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.tasks import TASKS
from pipelines.tasks.base import Objective, Score, Task


@dataclass(frozen=True, kw_only=True)
class CommaSpotting(Task):
    """Tell whether a text has a comma."""

    text_column: str = "text"
    max_length: int = 32

    does: ClassVar[str] = "spots commas"
    limits: ClassVar[str] = "It may err."
    pipeline_tag: ClassVar[str] = "text-classification"
    objective: ClassVar[Objective] = "head"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    head: ClassVar[str | None] = "score"
    peft_task_type: ClassVar[str] = "SEQ_CLS"

    def inputs(self, row):
        return row[self.text_column]

    def example(self, examples, index, row, labels, *, labelled=True):
        if not isinstance(row.get(self.text_column), str):
            raise DataError(f"{examples.locate(index)}: no text.")
        return row[self.text_column]

    def encode(self, examples, tokenizer, labels, *, training, sinks, labelled=True):
        rows = sinks("rows")
        for i, row in enumerate(examples.rows):
            text = self.example(examples, i, row, labels)
            ids = tokenizer(text)["input_ids"][: self.max_length] or [0]
            rows.append({"input_ids": ids, "labels": int("," in text)})
        return EncodedSplit({"rows": rows.close()}, {"rows": examples.num_rows})

    def loss(self, outputs, labels, num_items):
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items

    def labels(self, train):
        return ("without", "with")

    def score(self, prediction, held_out, labels):
        right = prediction.predictions.argmax(1) == prediction.label_ids
        values = {"accuracy": float(right.mean())}
        return Score(values, "accuracy", (0.0, 1.0), num_rows=len(right))

    def example_row(self):
        return {self.text_column: "one, two"}

    def example_lines(self):
        return ["print(model(**tokenizer('one, two', return_tensors='pt')))"]

    def model_kwargs(self, labels):
        return {"num_labels": 2, "label2id": {n: i for i, n in enumerate(labels)}}


@pytest.mark.parametrize("how", ["full", "8bit"])
def test_a_sixth_task_trains_saves_and_loads(how, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "CommaSpotting", CommaSpotting)
    file: Path = tmp_path / "rows.jsonl"
    file.write_text("\n".join(f'{{"text": "row {n}{", a" * (n % 2)}"}}' for n in range(64)))
    recipe = Recipe(
        name="commas",
        task=CommaSpotting(dataset=DatasetSource(path=str(file))),
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=40, learning_rate=1e-2, global_batch_size=8, save_steps=None),
        output_dir=str(tmp_path / "run"),
        **method(how),
    )
    metrics = run(recipe)
    assert metrics["accuracy"] > 0.9
    assert type(load_result(tmp_path / "run").recipe.task) is CommaSpotting
