"""Rows that cannot be used stop a run before a model is read, or are left out and counted."""

import json
from dataclasses import replace

import pytest

from pipelines.data.load import load_splits
from pipelines.data.source import DatasetSource
from pipelines.data.splits import check_splits
from pipelines.errors import DataError
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch, Train
from pipelines.reporting.cautions import contradiction_cautions, row_cautions
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

GOOD = {"text": "a ticket", "label": "x"}
OTHER = {"text": "another ticket", "label": "y"}
QUESTION = {"id": "1", "question": "What?", "context": "a ticket"} | {
    "answers": {"text": ["ticket"], "answer_start": [2]}
}


def lines_of(*rows) -> bytes:
    """Return rows as JSONL; bytes stand for themselves."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return b"\n".join(lines) + b"\n"


def checked(folder, train: bytes, test: bytes | None = None, kind="jsonl", task=None, **options):
    """Write a folder of two splits; return what of them a task can use, and its labels."""
    (folder / f"train.{kind}").write_bytes(train)
    (folder / f"test.{kind}").write_bytes(train if test is None else test)
    source = DatasetSource(path=str(folder), eval_split="test", **options)
    task = replace(task or TextClassification(dataset=source), dataset=source)
    return check_splits(task, load_splits(source), folder / "rejected.jsonl")


BAD_LINES = {
    "bad JSON": (b"{not json", "not JSON"),
    "half a line": (b'{"text": "a ti', "not JSON: Unterminated string"),
    "no object": (b"[1]", r"'\[1\]' is not an object"),
    "Latin-1": (b'{"text": "caf\xe9", "label": "x"}', "not UTF-8: byte 0xe9"),
    "NUL": (b'{"text": "a\0b", "label": "x"}', "a NUL character"),
    "escaped NUL": (rb'{"text": "a\u0000b", "label": "x"}', "a NUL character"),
    "half an emoji": (rb'{"text": "\ud83d", "label": "x"}', "half a surrogate pair, U.D83D"),
    "a key twice": (b'{"text": "a", "text": "b", "label": "x"}', "key 'text' is duplicated"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "a huge number": (b'{"text": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
    "no text": ({"txt": "a", "label": "x"}, "column 'text' holds None.*Columns: txt, label"),
    "a number for a text": ({"text": 5, "label": "x"}, "column 'text' holds 5, not a text"),
    "no label": ({"text": "a"}, "no value in column 'label'"),
    "an empty label": ({"text": "a", "label": ""}, "no value in column 'label'"),
    "no number": ({"text": "a", "label": float("nan")}, "nan is not one label"),
    "a fraction": ({"text": "a", "label": 0.5}, "0.5 is not one label.*regression"),
    "a fraction as text": ({"text": "a", "label": "0.5"}, "'0.5' is not one label"),
    "a list": ({"text": "a", "label": ["x"]}, r"\['x'\] is not one label"),
    "minus one": ({"text": "a", "label": "-1"}, "label -1 marks a row without a label"),
    "another type": ({"text": "a", "label": 3}, "label 3 is a number, but the first row has 'x'"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_an_unusable_row_is_named_or_skipped(kind, tmp_path):
    line, message = BAD_LINES[kind]
    data = lines_of(GOOD, b"", line, OTHER)
    with pytest.raises(DataError, match=rf"train.jsonl:3: .*{message}(.|\n)*test.jsonl:3: "):
        checked(tmp_path, data)
    splits, labels = checked(tmp_path, data, on_bad_row="skip")
    assert labels == ("x", "y")
    assert splits.train.rows == splits.held_out.rows == [GOOD, OTHER]
    assert splits.train.locate(1).endswith("train.jsonl:4")
    first, second = map(json.loads, (tmp_path / "rejected.jsonl").open(encoding="utf-8"))
    assert first["file"].endswith("train.jsonl")
    assert second["file"].endswith("test.jsonl")
    assert first["line"] == second["line"] == 3
    assert first["row"] == line if isinstance(line, dict) and kind != "no number" else first["row"]


def test_a_long_row_makes_no_long_message(tmp_path):
    with pytest.raises(DataError) as caught:
        checked(tmp_path, lines_of(GOOD, OTHER, {"text": ["a"] * 100_000, "label": "x"}))
    assert len(str(caught.value)) < 2000


def test_unusable_rows_of_both_splits_are_listed_in_one_message(tmp_path):
    bad = [{"text": "a"}] * 30
    with pytest.raises(DataError) as caught:
        checked(tmp_path, lines_of(GOOD, OTHER, *bad), lines_of(GOOD, *bad[:17]))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines[:10]] == [str(n) for n in range(3, 13)]
    assert lines[10:] == [
        "... and 37 more.",
        "Correct them, or leave them out with --task.dataset.on-bad-row skip.",
    ]


CSV_ROWS = {
    "short": (b"only\n", "3: 1 cells, but the header has 2"),
    "long": (b"a,x,z\n", "3: 3 cells, but the header has 2"),
    "quoted badly": (b'"a"b,x\n', "3: ',' expected after '\"'"),
    "Latin-1": (b"caf\xe9,x\n", "3: not UTF-8: byte 0xe9"),
    "NUL": (b"a\0b,x\n", "3: a NUL character"),
}


@pytest.mark.parametrize("kind", CSV_ROWS)
def test_an_unusable_csv_row_is_named_or_skipped(kind, tmp_path):
    row, message = CSV_ROWS[kind]
    data = b"\xef\xbb\xbftext,label\nNA,null\n" + row + b'\n"two\nlines",y\n'
    with pytest.raises(DataError, match=f"train.csv:{message}"):
        checked(tmp_path, data, kind="csv")
    splits, labels = checked(tmp_path, data, kind="csv", on_bad_row="skip")
    assert splits.train.rows[0] == {"text": "NA", "label": "null"}
    assert splits.train.rows[1]["text"] == "two\nlines"
    assert splits.train.locate(1).endswith("train.csv:5")
    assert labels == ("null", "y")
    assert len(splits.train.rejected) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "train.csv: no rows"),
        (b"text,label\n", "train.csv: no rows"),
        (b"text,text\na,x\n", "train.csv:1: column 'text' is duplicated"),
        (b"text,\xff\na,x\n", "train.csv:1: not UTF-8"),
        (b"txt,label\na,x\nb,y\n", "train.csv: no column 'text', .*mean 'txt'.*: txt, label"),
        (b"text,label\na,x\nb,x\n", "holds one label, x; a classifier needs two"),
    ],
)
def test_a_file_without_usable_rows_is_refused_even_if_rows_are_skipped(data, message, tmp_path):
    for choice in ("stop", "skip"):
        with pytest.raises(DataError, match=message):
            checked(tmp_path, data, kind="csv", on_bad_row=choice)


def test_evaluation_labels_that_were_never_trained_are_left_out_of_the_score(tmp_path):
    test = lines_of(GOOD, GOOD | {"label": "z"})
    message = r"test.jsonl:2: label 'z' does not occur in the training rows. Known labels: x, y"
    with pytest.raises(DataError, match=message):
        checked(tmp_path, lines_of(GOOD, OTHER), test)
    splits, _ = checked(tmp_path, lines_of(GOOD, OTHER), test, on_bad_row="skip")
    assert splits.held_out.rows == [GOOD]
    task = TextClassification(dataset=DatasetSource(path="a"))
    assert any("1 evaluation rows cannot be used" in line for line in row_cautions(task, splits))


def test_rows_of_one_input_with_other_labels_are_counted(tmp_path):
    task = TextClassification(dataset=DatasetSource(path="a"))
    rows = [GOOD, GOOD | {"label": "y"}, GOOD, OTHER, OTHER, {"text": "third", "label": "x"}]
    splits, _ = checked(tmp_path, lines_of(*rows), task=task)
    [text] = contradiction_cautions(task, splits)
    assert text.startswith("3 training rows have the input of another one with other labels")
    several = replace(task, problem_type="multi_label_classification", label_form="list")
    rows = [GOOD | {"label": ["x", "y"]}, GOOD | {"label": ["y", "x"]}, OTHER | {"label": ["y"]}]
    splits, _ = checked(tmp_path, lines_of(*rows), task=several)
    assert not list(contradiction_cautions(several, splits))
    splits, _ = checked(tmp_path, lines_of(*rows, GOOD | {"label": ["x"]}), task=several)
    assert len(list(contradiction_cautions(several, splits))) == 1


QUESTIONS = {
    "not in the context": ({"text": ["ticket"], "answer_start": [0]}, "is not at"),
    "before it": ({"text": ["t"], "answer_start": [-1]}, "is not at character -1"),
    "no start": ({"text": "ticket", "answer_start": None}, "column 'answers' holds"),
    "of other lengths": ({"text": ["ticket"], "answer_start": []}, "column 'answers' holds"),
    "of other types": ({"text": ["ticket"], "answer_start": ["2"]}, "column 'answers' holds"),
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_an_unusable_question_is_named_or_skipped(kind, tmp_path):
    answers, message = QUESTIONS[kind]
    data = lines_of(QUESTION, QUESTION | {"answers": answers}, QUESTION)
    task = QuestionAnswering(dataset=DatasetSource(path="a"))
    with pytest.raises(DataError, match=f"train.jsonl:2: .*{message}"):
        checked(tmp_path, data, task=task)
    splits, _ = checked(tmp_path, data, task=task, on_bad_row="skip")
    assert splits.train.rows == [QUESTION, QUESTION]
    found = list(row_cautions(task, splits))
    assert "1 training rows have the id of another row" in found
    assert "2 of 2 evaluation rows have the input of a training row: the score is too good" in found


def test_rows_without_an_id_do_not_share_one(tmp_path):
    task = QuestionAnswering(dataset=DatasetSource(path="a"))
    rows = [QUESTION | {"id": None}, QUESTION | {"id": None}, QUESTION | {"id": "a"}]
    splits, _ = checked(tmp_path, lines_of(*rows), task=task)
    assert not any("have the id of another row" in line for line in row_cautions(task, splits))


def test_one_question_of_a_squad_file_can_be_skipped(tmp_path):
    question = {"id": "1", "question": "What?", "answers": [{"text": "a", "answer_start": 0}]}
    paragraph = {"context": "a ticket", "qas": [question, {"id": "2"}, question]}
    data = json.dumps({"data": [{"paragraphs": [paragraph]}]}).encode()
    task = QuestionAnswering(dataset=DatasetSource(path="a"))
    with pytest.raises(DataError, match=r"train.json:2: not a question of SQuAD: KeyError"):
        checked(tmp_path, data, kind="json", task=task)
    splits, _ = checked(tmp_path, data, kind="json", task=task, on_bad_row="skip")
    assert len(splits.train.rows) == 2


def test_class_names_of_two_splits_are_compared_by_name_not_by_number(tmp_path):
    from pipelines.data.rows import Examples

    task = TextClassification(dataset=DatasetSource(path="a"))
    other = Examples([{"text": "a", "label": 0}], "eval", label_names={"label": ("y", "x")})
    assert task.example(other, 0, other.rows[0], ("x", "y")) == (["a"], 1)
    foreign = Examples([{"text": "a", "label": 0}], "eval", label_names={"label": ("z", "x")})
    with pytest.raises(DataError, match="eval row 0: label 'z' does not occur"):
        task.example(foreign, 0, foreign.rows[0], ("x", "y"))
    beyond = Examples([{"text": "a", "label": 2}], "eval", label_names={"label": ("x", "y")})
    with pytest.raises(DataError, match="eval row 0: label 2 is outside 0 to 1"):
        task.example(beyond, 0, beyond.rows[0], ("x", "y"))


def test_rows_held_out_keep_their_lines(tmp_path):
    rows = [row | {"text": f"{row['text']} {n}"} for n in range(5) for row in (GOOD, OTHER)]
    data = lines_of(b"{", *rows, b"{")
    (tmp_path / "train.jsonl").write_bytes(data)
    source = DatasetSource(path=str(tmp_path), eval_fraction=0.2, on_bad_row="skip")
    splits, _ = check_splits(TextClassification(dataset=source), load_splits(source))
    for examples in (splits.train, splits.held_out):
        for index, row in enumerate(examples.rows):
            assert examples.locate(index).endswith(f"train.jsonl:{rows.index(row) + 2}")
    assert [row["label"] for row in splits.held_out.rows] in (["x", "y"], ["y", "x"])
    assert [each.line for each in splits.train.rejected] == [1, 12]
    source = replace(source, max_train_rows=3)
    splits, _ = check_splits(TextClassification(dataset=source), load_splits(source))
    assert [rows.index(row) + 2 for row in splits.train.rows] == list(splits.train.lines)
    assert [each.line for each in splits.train.rejected] == [1, 12]


def test_a_run_counts_what_it_skips_and_its_score_can_be_found_again(
    helpdesk, checkpoint, tmp_path, capsys
):
    from pipelines.evaluation.evaluate import evaluate as evaluate_result
    from pipelines.hub.card import model_card

    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        rows = (helpdesk / "classify" / f"{split}.jsonl").read_bytes()
        (data / f"{split}.jsonl").write_bytes(rows + b'{"text": "cut')
    source = DatasetSource(path=str(data), eval_split="test")
    recipe = Recipe(
        name="skipping",
        task=TextClassification(dataset=source, label_column="queue", max_length=64),
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=2, global_batch_size=4),
        output_dir=str(tmp_path / "run"),
    )
    with pytest.raises(DataError, match=r"train.jsonl:65: .*\n.*test.jsonl:33: "):
        run(recipe)
    assert not (tmp_path / "run" / "checkpoints").exists()
    source = replace(source, on_bad_row="skip")
    metrics = run(replace(recipe, task=replace(recipe.task, dataset=source)))
    message = capsys.readouterr().out
    assert "1 training rows cannot be used and were left out" in message
    assert "32 rows without 1 that cannot be used" in message
    assert metrics["rows"] == 32
    assert metrics["rows_skipped"] == metrics["train_rows_skipped"] == 1
    assert len((tmp_path / "run" / "rejected.jsonl").read_text().splitlines()) == 2
    assert evaluate_result(tmp_path / "run").equal
    sidecar = json.loads((tmp_path / "run" / "task.json").read_text())
    assert "without 1 rows that cannot be used:" in model_card(recipe, sidecar, "user/x")


def test_a_stream_names_or_skips_unusable_rows(tmp_path, checkpoint, capsys):
    rows = [{"text": f"ticket {n} of a customer"} for n in range(30)]
    data = lines_of(rows[0], b"{", *rows[1:], {"txt": "a"}, *rows)
    (tmp_path / "train.jsonl").write_bytes(data)
    source = DatasetSource(path=str(tmp_path), streaming=True, max_eval_rows=4)
    recipe = Recipe(
        name="stream",
        task=CausalLM(dataset=source, block_size=16),
        model=Scratch(
            n_layer=1,
            n_head=1,
            n_embd=8,
            n_positions=16,
            tokenizer=Model(name_or_path=str(checkpoint)),
        ),
        train=Train(max_steps=40, global_batch_size=4),
        output_dir=str(tmp_path / "run"),
    )
    with pytest.raises(DataError, match="train.jsonl:2: not JSON"):
        run(recipe)
    (tmp_path / "train.jsonl").write_bytes(lines_of(*rows[:6], {"txt": "a"}, *rows))
    with pytest.raises(DataError, match="train.jsonl:7: column 'text' holds None"):
        run(recipe)
    (tmp_path / "train.jsonl").write_bytes(data)
    task = replace(recipe.task, dataset=replace(source, on_bad_row="skip"))
    metrics = run(replace(recipe, task=task))
    assert metrics["rows_skipped"] == metrics["train_rows_skipped"] == 1
    lines = [json.loads(line)["line"] for line in (tmp_path / "run/rejected.jsonl").open()]
    assert lines == [2, 32]


def test_too_many_truncated_rows_stop_the_run(helpdesk, tokenizer):
    source = DatasetSource(path=str(helpdesk / "classify"), eval_split="test")
    task = TextClassification(
        dataset=source, label_column="queue", max_length=16, max_truncated_fraction=0.5
    )
    splits, labels = check_splits(task, load_splits(source))
    with pytest.raises(DataError, match="64 of 64 rows do not fit, more than .* 0.5"):
        task.features(splits.train, tokenizer, labels, training=True)
    half = replace(task, max_truncated_fraction=1.0)
    assert half.features(splits.train, tokenizer, labels, training=True).report["rows_cut"] == 64
    asked = QuestionAnswering(
        dataset=replace(source, path=str(helpdesk / "answer")),
        version_2_with_negative=True,
        max_question_length=2,
        max_truncated_fraction=0.5,
    )
    splits, labels = check_splits(asked, load_splits(asked.dataset))
    with pytest.raises(DataError, match="64 of 64 rows do not fit"):
        asked.features(splits.train, tokenizer, labels, training=True)
