"""Test rows: held out or given, apart from all others, and the reported score is of them."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from helpers.factories import make_tasks
from pipelines.data.load import load_splits
from pipelines.data.source import DatasetSource
from pipelines.data.splits import check_splits
from pipelines.errors import DataError, RecipeError
from pipelines.evaluation.evaluate import evaluate
from pipelines.flow import run
from pipelines.hub.card import model_card
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.reporting.cautions import shared_input_cautions
from pipelines.results.files import read_manifest
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

SORTED = [{"text": f"{name} {i}", "label": name} for name in ("a", "b", "c") for i in range(100)]
"""Rows in the order of their labels."""


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def split(path, kind=TextClassification, **options):
    task = kind(dataset=DatasetSource(path=str(path), **options))
    return check_splits(task, load_splits(task.dataset))[0]


def texts(examples):
    return {row["text"] for row in examples.rows}


def test_a_file_sorted_by_label_gives_three_stratified_parts(tmp_path):
    file = write(tmp_path / "rows.jsonl", SORTED)
    splits = split(file, eval_fraction=0.2, test_fraction=0.1)
    parts = (splits.train, splits.held_out, splits.test)
    labels = [Counter(row["label"] for row in part.rows) for part in parts]
    assert labels == [dict.fromkeys("abc", count) for count in (70, 20, 10)]
    assert set.union(*map(texts, parts)) == {row["text"] for row in SORTED}
    assert sum(len(texts(part)) for part in parts) == 300
    assert splits.reported is splits.test


def test_test_rows_leave_the_validation_rows_the_same(tmp_path):
    file = write(tmp_path / "rows.jsonl", SORTED)
    assert split(file, test_fraction=0.3).held_out.rows == split(file).held_out.rows


def test_the_test_rows_follow_the_seed_alone(tmp_path):
    file = write(tmp_path / "rows.jsonl", SORTED)
    one, again, other = (
        texts(split(file, test_fraction=0.1, split_seed=seed).test) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_no_context_is_in_two_splits(tmp_path):
    rows = [
        {
            "id": str(i),
            "question": f"q {i}?",
            "context": f"the answer {i % 20} is here",
            "answers": {"text": ["answer"], "answer_start": [4]},
        }
        for i in range(100)
    ]
    splits = split(write(tmp_path / "rows.jsonl", rows), QuestionAnswering, test_fraction=0.2)
    contexts = [
        {row["context"] for row in part.rows}
        for part in (splits.train, splits.held_out, splits.test)
    ]
    assert [len(each) for each in contexts] == [14, 2, 4]
    assert sum(map(len, contexts)) == len(set.union(*contexts))


def test_one_document_is_cut_in_three(tmp_path):
    text = "".join(f"{i:09d} " for i in range(100))
    (tmp_path / "book.txt").write_text(text)
    splits = split(tmp_path / "book.txt", CausalLM, eval_fraction=0.1, test_fraction=0.2)
    parts = [next(iter(each.rows))["text"] for each in (splits.train, splits.test, splits.held_out)]
    assert [len(part) for part in parts] == [700, 200, 100]
    assert "".join(parts) == text
    assert splits.record["test"]["part"] == "the last 20 % of the text before the validation part"


def test_a_split_that_is_given_is_taken_whole(tmp_path):
    for name, rows in (("train", SORTED[:200]), ("test", SORTED[50:100])):
        write(tmp_path / f"{name}.jsonl", rows)
    splits = split(tmp_path, test_split="test", max_test_rows=20)
    assert splits.record["test"] == {
        "split": "test",
        "part": "all",
        "shares_inputs": False,
        "rows": 20,
        "of": 50,
    }
    assert splits.record["eval"]["rows"] == 20  # 10 % of 200, held out
    assert splits.record["reported"] == "test"


def test_scored_split_eval_holds_test_rows_out_and_reports_none_of_them(tmp_path):
    file = write(tmp_path / "rows.jsonl", SORTED)
    full = split(file, test_fraction=0.1)
    trial = split(file, test_fraction=0.1, scored_split="eval")
    assert trial.train.rows == full.train.rows
    assert trial.reported is trial.held_out
    assert list(trial.scored) == ["eval"]


def test_inputs_of_another_split_are_told(tmp_path):
    rows = {"train": SORTED, "dev": [*SORTED[:2], {"text": "new", "label": "a"}]}
    rows["test"] = [*rows["dev"][2:], *SORTED[5:6]]
    for name, content in rows.items():
        write(tmp_path / f"{name}.jsonl", content)
    source = DatasetSource(path=str(tmp_path), eval_split="dev", test_split="test")
    task = TextClassification(dataset=source)
    splits, _ = check_splits(task, load_splits(source))
    assert list(shared_input_cautions(task, splits)) == [
        "2 of 3 evaluation rows have the input of a training row: the score is too good",
        "1 of 2 test rows have the input of a training row: the score is too good",
        "1 of 2 test rows have the input of an evaluation row: the score is too good",
    ]


def test_files_of_two_splits_are_refused(tmp_path):
    write(tmp_path / "train.jsonl", SORTED)
    write(tmp_path / "dev.jsonl", SORTED[:9])
    (tmp_path / "test.jsonl").symlink_to(tmp_path / "dev.jsonl")
    with pytest.raises(DataError, match="of the validation rows. Name another --task.dataset.test"):
        split(tmp_path, eval_split="dev", test_split="test")


def test_one_file_without_the_named_test_split_holds_rows_out(tmp_path):
    file = write(tmp_path / "rows.jsonl", SORTED)
    splits = split(file, test_split="test")
    assert splits.record["test"]["part"] == "10 % of the rows"
    assert len(splits.test.rows) == 30


def test_a_stream_takes_test_rows_of_a_split_of_its_own(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(30)])
    options = {"streaming": True, "max_eval_rows": 4, "test_split": "test"}
    with pytest.raises(DataError, match="Set --task.dataset.max-test-rows"):
        split(tmp_path, CausalLM, **options)
    splits = split(tmp_path, CausalLM, **options, max_test_rows=5)
    assert [row["text"] for row in splits.test.rows] == [f"test {i}" for i in range(5)]
    assert splits.record["test"]["part"] == "the first 5 rows"


def test_unusable_test_rows_are_named(tmp_path):
    write(tmp_path / "train.jsonl", SORTED)
    write(tmp_path / "test.jsonl", [*SORTED[:5], {"text": "x", "label": "d"}])
    with pytest.raises(DataError, match=r"test.jsonl:6: label 'd' does not occur"):
        split(tmp_path, test_split="test")


@pytest.mark.parametrize(
    ("options", "field", "text"),
    [
        ({"test_split": "train"}, "test_split", "the split to train on, too"),
        ({"eval_split": "dev", "test_split": "dev"}, "test_split", "the split to choose by, too"),
        ({"scored_split": "test"}, "scored_split", "there are no test rows"),
        ({"test_fraction": 0.6, "eval_fraction": 0.4}, "test_fraction", "leave no rows"),
        (
            {"test_fraction": 0.1, "streaming": True, "max_eval_rows": 4},
            "test_fraction",
            "no test rows can be held out of a stream",
        ),
    ],
)
def test_splits_that_cannot_be_are_one_message(options, field, text, tmp_path):
    task = CausalLM(dataset=DatasetSource(path=str(tmp_path), **options))
    with pytest.raises(RecipeError) as raised:
        Recipe(
            name="x",
            task=task,
            model=Model(name_or_path="gpt2"),
            train=Train(max_steps=10),
        )
    [problem] = raised.value.problems
    assert problem.path == f"task.dataset.{field}"
    assert text in problem.message


def recipe_for(helpdesk, checkpoint, folder, **options):
    task = make_tasks(helpdesk)["text_classification"]
    train = Train(max_steps=4, learning_rate=1e-2, global_batch_size=8, eval_steps=2)
    return Recipe(
        name="tested",
        task=replace(task, dataset=replace(task.dataset, **options)),
        model=Model(name_or_path=str(checkpoint)),
        train=replace(train, keep="best"),
        output_dir=str(folder),
    )


def test_a_choice_holds_out_test_rows_and_reports_their_score(
    helpdesk, checkpoint, tmp_path, capsys
):
    recipe = recipe_for(helpdesk, checkpoint, tmp_path / "run")
    metrics = run(recipe)
    sidecar = read_manifest(tmp_path / "run")
    assert sidecar["dataset"]["splits"]["reported"] == "test"
    assert metrics["rows"] == sidecar["dataset"]["splits"]["test"]["rows"]
    assert "rows of the test split; validation " in capsys.readouterr().out
    found = evaluate(tmp_path / "run")
    assert found.equal
    assert "10 % of the rows of train, the test rows" in capsys.readouterr().out
    card = model_card(recipe.with_test_rows(), sidecar, "user/tested")
    assert "| accuracy of the validation rows |" in card
    assert "nothing was chosen by them. Choices were made by the validation rows.\n\n" in card
    given = replace(recipe, train=replace(recipe.train, keep="last"))
    assert "nothing was chosen by them.\n\n" in model_card(given, sidecar, "user/tested")
    assert run(recipe) == metrics  # finished: the rows are recognised
    assert "holds the finished result" in capsys.readouterr().out


def test_without_test_rows_the_report_and_the_card_say_what_the_score_is_worth(
    helpdesk, checkpoint, tmp_path, capsys
):
    recipe = recipe_for(helpdesk, checkpoint, tmp_path / "run", test_fraction=0.0)
    run(recipe)
    assert "the score will be of the rows that the choice is made by" in capsys.readouterr().out
    card = model_card(recipe, read_manifest(tmp_path / "run"), "user/tested")
    assert "A choice was made by these very rows, so that the score is too good" in card


def test_evaluate_compares_validation_rows_with_the_validation_score(
    helpdesk, checkpoint, tmp_path
):
    recipe = recipe_for(helpdesk, checkpoint, tmp_path / "run")
    metrics = run(recipe)
    splits = check_splits(recipe.task, load_splits(recipe.with_test_rows().task.dataset))[0]
    write(tmp_path / "dev.jsonl", splits.held_out.rows)
    found = evaluate(tmp_path / "run", data=tmp_path / "dev.jsonl")
    assert found.claimed == metrics["validation"]["accuracy"]
    assert found.equal


def test_other_test_rows_change_no_weights(helpdesk, checkpoint, tmp_path):
    found = []
    for name in ("one", "other"):
        data = tmp_path / name
        data.mkdir()
        rows = (helpdesk / "classify" / "train.jsonl").read_text().splitlines()
        (data / "train.jsonl").write_text("\n".join(rows))
        (data / "test.jsonl").write_text("\n".join(rows[:9] if name == "one" else rows[9:20]))
        recipe = recipe_for(
            helpdesk, checkpoint, tmp_path / name / "run", path=str(data), test_split="test",
            eval_split=None,
        )  # fmt: skip
        run(recipe)
        found.append((tmp_path / name / "run" / "model.safetensors").read_bytes())
    assert found[0] == found[1]
