"""Balanced weights on a file of three classes at 97 : 2 : 1."""

import json
import random
from dataclasses import replace

import pytest

from pipelines.data.source import DatasetSource
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.tasks.text_classification import TextClassification


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """1,000 rows to train on and 1,000 others to score, whose words hint at the label.

    All 20 refunds are of something broken, but so are 48 orders; all 10 complaints are angry, but
    so are 28 orders. By the counts every row is most likely an order.
    """
    folder = tmp_path_factory.mktemp("imbalance")
    rows = [("order", "new")] * 894 + [("order", "broken")] * 48 + [("order", "angry")] * 28
    rows += [("refund", "broken")] * 20 + [("complaint", "angry")] * 10
    generator = random.Random(0)
    for name in ("train", "test"):
        generator.shuffle(rows)
        lines = [
            {"text": f"{generator.choice(['lamp', 'desk'])} {word}", "label": label}
            for label, word in rows
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_balanced_weights_find_rare_labels(folder, checkpoint, tmp_path):
    source = DatasetSource(path=str(folder), eval_split="test")
    task = TextClassification(dataset=source, max_length=16)
    plain = Recipe(
        name="plain",
        task=task,
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=60, learning_rate=2e-3, global_batch_size=64, save_steps=None),
        output_dir=str(tmp_path / "plain"),
    )
    weighted = replace(
        plain, task=replace(task, class_weights="balanced"), output_dir=str(tmp_path / "weighted")
    )
    before, after = run(plain), run(weighted)
    assert before["support_per_class"] == {"complaint": 10, "order": 970, "refund": 20}
    # without weights every row is an order: recalls of 1, 0 and 0, and one F1 of 2 * 970 / 1970
    assert before["balanced_accuracy"] == pytest.approx(1 / 3)
    assert before["macro_f1"] == pytest.approx(2 * 970 / 1970 / 3)
    # with them the hints decide: recalls of 894/970, 1 and 1, and F1 of 2 hits / (predicted + true)
    assert after["balanced_accuracy"] == pytest.approx((894 / 970 + 1 + 1) / 3)
    f1 = {"order": 2 * 894 / (894 + 970), "refund": 2 * 20 / (68 + 20)}
    f1["complaint"] = 2 * 10 / (38 + 10)
    assert after["f1_per_class"] == pytest.approx(f1)
    assert after["macro_f1"] > before["macro_f1"] + 0.2
