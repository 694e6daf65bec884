"""What is held out and what a maximum draws: by a seed, by label, with equal inputs together."""

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.load import load_splits
from pipelines.data.row_selection import draw_rows, hold_out_rows
from pipelines.data.source import DatasetSource
from pipelines.data.splits import check_splits
from pipelines.errors import DataError, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Train
from pipelines.reporting.cautions import cautions, shared_input_cautions
from pipelines.tasks.base import Features
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.preference import PreferenceTuning
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

SEEDS = st.integers(0, 2**32)
FRACTIONS = st.floats(0.01, 0.99)
ROWS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abcd")), min_size=2, max_size=60)
SEVERAL = st.lists(st.sets(st.sampled_from("abcdef"), max_size=3), min_size=2, max_size=60)


def write_rows(file, rows):
    """Write rows as JSONL; bytes stand for themselves."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def split(task, path, **options):
    """Return the splits of a file or folder, and the labels."""
    task = replace(task, dataset=DatasetSource(path=str(path), **options))
    return check_splits(task, load_splits(task.dataset))


SOURCE = DatasetSource(path="rows.jsonl")
CLASSIFY = TextClassification(dataset=SOURCE)
SORTED = [{"text": f"row {i}", "label": "neg" if i < 120 else "pos"} for i in range(200)]


def labels_of(examples):
    return Counter(row["label"] for row in examples.rows)


# The choice of rows


@settings(deadline=None)
@given(ROWS, FRACTIONS, SEEDS)
def test_rows_with_one_input_are_all_held_out_or_all_left(rows, fraction, seed):
    inputs, labels = [row[0] for row in rows], [[row[1]] for row in rows]
    chosen = hold_out_rows(inputs, labels, fraction, seed)
    assert chosen == sorted(set(chosen))
    assert set(chosen) < set(range(len(rows)))
    left = set(range(len(rows))) - set(chosen)
    assert not {inputs[i] for i in chosen} & {inputs[i] for i in left}
    assert {rows[i][1] for i in left} == {label for _, label in rows}
    assert chosen == hold_out_rows(inputs, labels, fraction, seed)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=200), FRACTIONS, SEEDS)
def test_each_label_gets_its_fraction_to_within_one_row(labels, fraction, seed):
    chosen = hold_out_rows(range(len(labels)), [[label] for label in labels], fraction, seed)
    sizes, held_out = Counter(labels), Counter(labels[i] for i in chosen)
    several = [label for label, size in sizes.items() if size > 1]
    for label, size in sizes.items():
        assert abs(held_out[label] - fraction * size) <= 1 + 1e-9
        assert held_out[label] < size
    if len(several) <= round(fraction * len(labels)):
        assert all(held_out[label] for label in several)
    assert bool(chosen) == bool(several)


@settings(deadline=None)
@given(SEVERAL, FRACTIONS, SEEDS)
def test_each_of_several_labels_is_left_in_training(labels, fraction, seed):
    labels = [sorted(names) for names in labels]
    chosen = set(hold_out_rows(range(len(labels)), labels, fraction, seed))
    left = {name for i, names in enumerate(labels) if i not in chosen for name in names}
    assert left == {name for names in labels for name in names}


def test_rare_labels_next_to_a_frequent_one_are_scored_too():
    labels = [["all", "rare"] if i < 10 else ["all"] for i in range(1000)]
    for seed in range(20):
        chosen = hold_out_rows(range(1000), labels, 0.1, seed)
        assert sum("rare" in labels[i] for i in chosen) == 1
        assert len(chosen) == 100


@settings(deadline=None)
@given(ROWS, st.integers(1, 60), SEEDS)
def test_a_maximum_draws_that_many_rows_and_each_label_if_possible(rows, count, seed):
    inputs, labels = [row[0] for row in rows], [[row[1]] for row in rows]
    drawn = draw_rows(inputs, labels, count, seed)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(count, len(rows))
    alone = draw_rows(range(len(rows)), labels, count, seed)
    sizes, found = Counter(label for _, label in rows), Counter(rows[i][1] for i in alone)
    if count >= len(sizes):
        assert found.keys() == sizes.keys()
        most = sum(size * count < len(rows) for size in sizes.values())  # labels that get one extra
        for label, size in sizes.items():
            wanted = size * min(count / len(rows), 1)
            assert -1 - most <= found[label] - wanted <= 1 + 1e-9


def test_another_seed_draws_other_rows():
    inputs, labels = range(100), [[]] * 100
    assert len({tuple(hold_out_rows(inputs, labels, 0.1, seed)) for seed in range(20)}) == 20
    assert len({tuple(draw_rows(inputs, labels, 10, seed)) for seed in range(20)}) == 20


def test_the_choice_is_the_same_on_every_machine():
    """The numbers are what Python's Mersenne Twister gives for seed 42, in every version."""
    inputs, labels = [f"row {i}" for i in range(40)], ["ab"[i % 4 == 0] for i in range(40)]
    program = (
        "from pipelines.data.row_selection import *; "
        f"print(hold_out_rows({inputs}, {labels}, 0.2, 42), draw_rows({inputs}, {labels}, 6, 42))"
    )
    assert random.Random(42).random() == 0.6394267984578837
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = f"{hold_out_rows(inputs, labels, 0.2, 42)} {draw_rows(inputs, labels, 6, 42)}\n"
    assert found == {here}
    assert here == "[1, 7, 9, 12, 16, 19, 26, 27] [1, 7, 9, 12, 16, 19]\n"


# The rows of a source


def test_rows_sorted_by_label_are_held_out_by_label(tmp_path):
    file = write_rows(tmp_path / "sorted.jsonl", SORTED)
    splits, labels = split(CLASSIFY, file)
    assert labels_of(splits.held_out) == {"neg": 12, "pos": 8}
    assert labels_of(splits.train) == {"neg": 108, "pos": 72}
    assert labels == ("neg", "pos")
    assert splits.held_out.rows == [r for r in SORTED if r in splits.held_out.rows]  # file order
    for index, row in enumerate(splits.held_out.rows):
        assert splits.held_out.locate(index) == f"{file}:{SORTED.index(row) + 1}"
    again, _ = split(CLASSIFY, file)
    assert again.held_out.fingerprint() == splits.held_out.fingerprint()
    other, _ = split(CLASSIFY, file, split_seed=7)
    assert other.held_out.fingerprint() != splits.held_out.fingerprint()
    assert labels_of(other.held_out) == labels_of(splits.held_out)


def test_a_maximum_draws_all_labels_of_a_sorted_file(tmp_path):
    file = write_rows(tmp_path / "sorted.jsonl", SORTED)
    splits, labels = split(CLASSIFY, file, max_train_rows=30, max_eval_rows=5)
    assert labels_of(splits.train) == {"neg": 18, "pos": 12}
    assert labels_of(splits.held_out) == {"neg": 3, "pos": 2}
    assert splits.record["train"] == {"split": "train", "rows": 30, "of": 180}
    whole, _ = split(CLASSIFY, file)
    assert all(row in whole.train.rows for row in splits.train.rows)
    assert all(row in whole.held_out.rows for row in splits.held_out.rows)
    # with one row the model still has both labels, and no message says that the column has one
    splits, labels = split(CLASSIFY, file, max_train_rows=1)
    assert labels == ("neg", "pos")
    assert len(splits.train.rows) == 1


def test_a_maximum_of_two_files_draws_from_all_their_rows(tmp_path):
    write_rows(tmp_path / "train.jsonl", SORTED)
    write_rows(tmp_path / "test.jsonl", [row | {"text": f"test {row}"} for row in SORTED])
    splits, _ = split(CLASSIFY, tmp_path, eval_split="test", max_train_rows=50, max_eval_rows=10)
    assert labels_of(splits.train) == {"neg": 30, "pos": 20}
    assert labels_of(splits.held_out) == {"neg": 6, "pos": 4}
    assert splits.record == {
        "reported": "eval",
        "train": {"split": "train", "rows": 50, "of": 200},
        "eval": {"split": "test", "part": "all", "shares_inputs": False, "rows": 10, "of": 200},
        "split_seed": 42,
        "stratified_by": "label",
        "grouped_by": "input",
    }


def test_unusable_rows_change_no_split_and_are_all_listed(tmp_path):
    clean, _ = split(CLASSIFY, write_rows(tmp_path / "clean.jsonl", SORTED))
    rows = [*SORTED]
    for position, bad in (
        (150, b"{"),
        (90, {"text": "no label"}),
        (0, {"text": 1, "label": "neg"}),
    ):
        rows.insert(position, bad)
    file = write_rows(tmp_path / "dirty.jsonl", rows)
    options = {"on_bad_row": "skip"}
    dirty, _ = split(CLASSIFY, file, **options)
    assert dirty.held_out.rows == clean.held_out.rows
    assert dirty.train.rows == clean.train.rows
    capped, _ = split(CLASSIFY, file, max_train_rows=20, max_eval_rows=2, **options)
    for splits in (dirty, capped):
        assert [each.line for each in splits.train.rejected] == [1, 92, 153]
        assert splits.held_out.rejected == ()
    with pytest.raises(DataError, match=r"jsonl:1: (.|\n)*jsonl:92: (.|\n)*jsonl:153: "):
        split(CLASSIFY, file)


def question(i, context):
    answers = {"text": [context[:3]], "answer_start": [0]}
    return {"id": str(i), "question": f"Which {i}?", "context": context, "answers": answers}


def turns(prompt, reply):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


TOLD_APART_BY = {
    "documents": (CausalLM(dataset=SOURCE), lambda i: {"text": f"document {i // 3}"}, "text"),
    "texts": (
        CLASSIFY,
        lambda i: {"text": f"text {i // 3}", "label": "ab"[i // 3 % 2]},
        "text",
    ),
    "contexts": (
        QuestionAnswering(dataset=SOURCE),
        lambda i: question(i, f"context {i // 3}"),
        "context",
    ),
    "prompts": (
        InstructionTuning(dataset=SOURCE, prompt_format="{a}{b}"),
        lambda i: {"a": f"meaning {i // 9}", "b": str(i // 3), "completion": f"reply {i}"},
        "b",
    ),
    "chats": (
        InstructionTuning(dataset=SOURCE, chat=True),
        lambda i: {"p": i // 3, "completion": turns(f"prompt {i // 3}", f"reply {i}")},
        "p",
    ),
    "preferences": (
        PreferenceTuning(dataset=SOURCE),
        lambda i: {"prompt": f"prompt {i // 3}", "chosen": f"yes {i}", "rejected": "no"},
        "prompt",
    ),
    "numbers": (
        replace(CLASSIFY, problem_type="regression"),
        lambda i: {"text": f"text {i // 3}", "label": i / 7},
        "text",
    ),
}


OF_TWO_LABELS = {
    "texts of two labels": (
        CLASSIFY,
        lambda i: {"text": f"text {i // 3}", "label": "ab"[i % 2]},
        "text",
    )
}


@pytest.mark.parametrize("kind", [*TOLD_APART_BY, *OF_TWO_LABELS])
def test_nothing_that_a_model_reads_is_in_both_splits(kind, tmp_path):
    task, make, column = (TOLD_APART_BY | OF_TWO_LABELS)[kind]
    rows = [make(i) for i in range(90)]
    random.Random(0).shuffle(rows)
    splits, _ = split(task, write_rows(tmp_path / "rows.jsonl", rows))
    sides = [{row[column] for row in each.rows} for each in (splits.train, splits.held_out)]
    assert not sides[0] & sides[1]
    assert len(splits.train.rows) + len(splits.held_out.rows) == 90
    assert 8 <= len(splits.held_out.rows) <= 10
    assert list(shared_input_cautions(task, splits)) == []
    assert splits.held_out.rows != rows[-9:]
    # as two files, each evaluation row that reads what a training row reads counts
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", [make(0), make(3), make(300)])
    splits, _ = split(task, tmp_path, eval_split="test")
    [text] = shared_input_cautions(task, splits)
    assert text.startswith("2 of ")


def test_all_references_of_a_prompt_stay_together_up_to_the_maximum(tmp_path):
    task = InstructionTuning(dataset=SOURCE)
    rows = [
        {"prompt": f"meaning {i}", "completion": f"reply {n}"}
        for i in range(40)
        for n in range(1 + i)
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    splits, _ = split(task, file, eval_fraction=0.2, max_eval_rows=60)
    assert len(splits.held_out.rows) == 60
    found = Counter(row["prompt"] for row in splits.held_out.rows)
    cut = [prompt for prompt, count in found.items() if count <= int(prompt.split()[1])]
    assert len(cut) <= 1  # the last one, which fills the maximum


def test_of_two_rows_one_is_held_out(tmp_path):
    file = write_rows(
        tmp_path / "two.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
    )
    for task in (CausalLM(dataset=SOURCE), replace(CLASSIFY, problem_type="regression")):
        splits, _ = split(task, file)
        assert len(splits.train.rows) == len(splits.held_out.rows) == 1
    with pytest.raises(DataError, match="every label would lose its only row.*--task.dataset.eval"):
        split(CLASSIFY, file)


def test_rows_with_one_context_are_split_with_a_caution(tmp_path):
    rows = [question(i, "the only context") for i in range(100)]
    task = QuestionAnswering(dataset=SOURCE)
    splits, _ = split(task, write_rows(tmp_path / "rows.jsonl", rows))
    assert len(splits.train.rows) == 90
    assert len(splits.held_out.rows) == 10
    (line,) = told(splits, task=task)
    assert line.startswith("evaluation rows have the same context as training rows")


def test_a_single_row_that_is_no_document_is_refused(tmp_path):
    file = write_rows(tmp_path / "one.jsonl", [{"text": "a", "label": 0.5}])
    with pytest.raises(DataError, match="none of its rows .1. can be held out: there is only one"):
        split(replace(CLASSIFY, problem_type="regression"), file)


def test_a_label_with_one_row_is_trained_on(tmp_path):
    rows = [{"text": f"row {i}", "label": "x" if i < 19 else "once"} for i in range(20)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    for seed in range(10):
        splits, labels = split(CLASSIFY, file, split_seed=seed, eval_fraction=0.5)
        assert labels == ("once", "x")
        assert labels_of(splits.train)["once"] == 1


def test_a_single_document_is_cut_and_its_end_held_out(tmp_path):
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "plays.txt").write_text(text)
    splits, _ = split(CausalLM(dataset=SOURCE), tmp_path / "plays.txt")
    (train,), (held_out,) = splits.train.rows, splits.held_out.rows
    assert train["text"] + held_out["text"] == text
    assert len(held_out["text"]) == round(len(text) * 0.1)
    assert splits.record["eval"]["part"] == "the last 10 % of the text"
    file = write_rows(tmp_path / "one.jsonl", [{"content": text}])
    splits, _ = split(CausalLM(dataset=SOURCE, text_column="content"), file)
    assert splits.held_out.rows == [{"content": held_out["text"]}]


# One file, and two names for one file


@pytest.mark.parametrize("streaming", [False, True])
def test_one_file_is_not_read_for_both_splits(streaming, tmp_path):
    rows = [{"text": f"row {i}"} for i in range(40)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    options = {"streaming": True, "max_eval_rows": 4} if streaming else {}
    splits, _ = split(CausalLM(dataset=SOURCE), file, eval_split="test", **options)
    held_out, train = splits.held_out.rows, list(splits.train.rows)
    assert len(held_out) == 4
    assert len(train) == 36
    assert not [row for row in held_out if row in train]
    assert splits.record["eval"]["split"] == "train"


def test_two_names_of_one_file_are_refused(tmp_path):
    write_rows(tmp_path / "train.jsonl", SORTED)
    (tmp_path / "test.jsonl").symlink_to(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="test.jsonl is .*train.jsonl: .*--task.dataset.eval-split"):
        split(CLASSIFY, tmp_path, eval_split="test")


def test_a_recipe_that_scores_on_its_training_split_is_refused():
    source = DatasetSource(path="user/data", eval_split="train")
    with pytest.raises(RecipeError, match="task.dataset.eval_split: 'train' is the split to train"):
        Recipe(name="a", task=replace(CLASSIFY, dataset=source), model=Model(name_or_path="b"))


# Wrong columns


COLUMNS = {
    "text": (CLASSIFY, {"sentence": "a", "label": "x"}, "'text', which --task.text-column names"),
    "near": (CLASSIFY, {"Text ": "a", "label": "x"}, r"\(did you mean 'Text '\?\)"),
    "label": (CLASSIFY, {"text": "a", "lable": "x"}, "--task.label-column .*mean 'lable'"),
    "both": (CLASSIFY, {"a": "a", "b": "x"}, "'text', .*; no column 'label', which --task.label-c"),
    "document": (CausalLM(dataset=SOURCE), {"content": "a"}, "--task.text-column .*: content"),
    "context": (
        QuestionAnswering(dataset=SOURCE),
        {"id": "1", "question": "a", "passage": "b", "answers": {"text": [], "answer_start": []}},
        "'context', which --task.context-column .*: id, question, passage, answers",
    ),
    "format": (
        InstructionTuning(dataset=SOURCE, prompt_format="{instruction} {input}"),
        {"instructions": "a", "input": "b", "completion": "c"},
        "'instruction', which --task.prompt-format names .did you mean 'instructions'",
    ),
    "reply": (
        InstructionTuning(dataset=SOURCE),
        {"prompt": "a", "output": "c"},
        "'completion', which --task.completion-column",
    ),
    "chat": (
        InstructionTuning(dataset=SOURCE, chat=True, completion_column="messages"),
        {"conversation": turns("a", "b")},
        "'messages', which --task.completion-column .*: conversation",
    ),
    "chosen": (
        PreferenceTuning(dataset=SOURCE),
        {"prompt": "a", "choosen": "b", "rejected": "c"},
        "'chosen', which --task.chosen-column names .did you mean 'choosen'",
    ),
}


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_wrong_column_is_one_line_with_its_flag_and_the_columns(kind, on_bad_row, tmp_path):
    task, row, message = COLUMNS[kind]
    file = write_rows(tmp_path / "rows.jsonl", [row] * 500)
    with pytest.raises(DataError, match=message) as caught:
        split(task, file, on_bad_row=on_bad_row)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{file}: no column ")


def test_a_wrong_column_of_the_evaluation_file_alone_is_named(tmp_path):
    write_rows(tmp_path / "train.jsonl", SORTED)
    write_rows(tmp_path / "test.jsonl", [{"text": "a", "Label": "neg"}] * 20)
    for on_bad_row in ("stop", "skip"):
        with pytest.raises(DataError, match=r"test.jsonl: no column 'label'.*mean 'Label'") as e:
            split(CLASSIFY, tmp_path, eval_split="test", on_bad_row=on_bad_row)
        assert len(str(e.value).splitlines()) == 1
        assert "None holds out training rows" in str(e.value)  # as for a test set without labels


def test_a_stream_that_would_skip_every_row_names_the_column(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"content": "a"}] * 9)
    write_rows(tmp_path / "test.jsonl", [{"text": "a"}] * 9)
    options = {"streaming": True, "max_eval_rows": 4, "eval_split": "test", "on_bad_row": "skip"}
    with pytest.raises(DataError, match=r"train.jsonl: no column 'text'"):
        split(CausalLM(dataset=SOURCE), tmp_path, **options)


def test_rows_that_lack_a_column_among_others_are_named_by_line(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [*SORTED, {"txt": "a", "label": "neg"}])
    with pytest.raises(DataError, match=r"rows.jsonl:201: column 'text' holds None"):
        split(CLASSIFY, file)


# What is told before the first step


def told(splits, labels=(), train=None, held_out=None, task=CLASSIFY, **options):
    """Return the cautions of a run."""
    recipe = Recipe(
        name="a", task=task, model=Model(name_or_path="b"), lora=Lora(), train=Train(**options)
    )
    train = train or Features([], {}, num_rows=180)
    held_out = held_out or Features([], {}, num_rows=20)
    return list(cautions(recipe, splits, labels, train, {"eval": held_out}))


def test_good_rows_give_no_caution(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", SORTED)
    assert told(*split(CLASSIFY, file)) == []
    assert told(*split(CLASSIFY, file, max_train_rows=100, max_eval_rows=10)) == []
    for kind, (task, make, _) in TOLD_APART_BY.items():
        write_rows(tmp_path / f"{kind}.jsonl", [make(i) for i in range(90)])
        assert told(*split(task, tmp_path / f"{kind}.jsonl"), task=task) == []
    few = Features([], {"rows": 100, "rows_cut": 30}, 100, lengths=[10] * 70 + [200] * 30)
    assert told(*split(CLASSIFY, file), train=few, held_out=few) == []


def test_a_choice_between_one_evaluation_is_cautioned(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", SORTED)
    source = DatasetSource(path=str(file), test_fraction=0.1)
    splits, labels = check_splits(replace(CLASSIFY, dataset=source), load_splits(source))
    options = {"keep": "best", "num_train_epochs": 2.0, "global_batch_size": 30}  # 12 steps
    assert told(splits, labels, eval_steps=11, **options) == []
    [text] = told(splits, labels, eval_steps=12, **options)
    assert text.startswith("an evaluation every 12 steps (--train.eval-steps) in a run of 12:")


def test_one_file_in_place_of_an_eval_split_is_cautioned(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", SORTED)
    task = replace(CLASSIFY, dataset=DatasetSource(path=str(file), eval_split="test"))
    splits, labels = check_splits(task, load_splits(task.dataset))
    (line,) = told(splits, labels, task=task)
    assert line == (
        f"{file} is one file, without a split 'test': 10 % of the rows are held out for evaluation"
    )


def test_labels_that_are_not_learned_or_not_scored_are_cautioned(tmp_path):
    rows = [*SORTED, {"text": "once", "label": "rare"}]
    splits, labels = split(CLASSIFY, write_rows(tmp_path / "rows.jsonl", rows))
    assert told(splits, labels) == [
        "1 of 3 labels (rare) has only one training row",
        "1 of 3 labels (rare) has no evaluation row",
    ]
    splits, labels = split(CLASSIFY, tmp_path / "rows.jsonl", max_train_rows=2, max_eval_rows=12)
    assert "1 of 3 labels (rare) has no training row" in told(splits, labels)


def test_groups_too_large_for_the_fraction_are_cautioned(tmp_path):
    rows = [question(i, f"context {i % 2}") for i in range(40)]
    task = QuestionAnswering(dataset=SOURCE)
    splits, labels = split(task, write_rows(tmp_path / "rows.jsonl", rows))
    (line,) = told(splits, labels, task=task)
    assert line.startswith("20 of 40 rows are held out, for 4 wanted: rows with the same context")


def test_truncated_rows_are_cautioned(tmp_path):
    splits, labels = split(CLASSIFY, write_rows(tmp_path / "rows.jsonl", SORTED))
    cut = Features([], {}, num_rows=100, lengths=[*range(101, 201)])
    assert told(splits, labels, train=cut) == [
        "72 of 100 training rows are cut at 128 tokens (--task.max-length): their median is 150, "
        "95 % have at most 195"
    ]
    task = QuestionAnswering(dataset=SOURCE)
    rows = [question(i, f"context {i}") for i in range(100)]
    splits, _ = split(task, write_rows(tmp_path / "questions.jsonl", rows))
    lost = Features([], {"answers_lost": 15}, num_rows=20, lengths=[64] * 20)
    assert told(splits, (), held_out=lost, task=task)[-1:] == [
        "the answers of 15 of 20 evaluation rows are in no window (--task.max-length)"
    ]


def test_batches_and_warm_up_longer_than_the_run_are_cautioned(tmp_path):
    splits, labels = split(CLASSIFY, write_rows(tmp_path / "rows.jsonl", SORTED))
    (line,) = told(splits, labels, global_batch_size=181)
    assert line.startswith("a global batch of 181 (--train.global-batch-size) is more than the 180")
    (line,) = told(splits, labels, max_steps=20, warmup_steps=20)
    assert line == (
        "20 steps of warm-up (--train.warmup-steps) in a run of 20: the learning rate never "
        "reaches 0.0002"
    )
    # 3 epochs of 180 rows in batches of 32 are 18 steps
    assert told(splits, labels, warmup_steps=17) == []
    assert len(told(splits, labels, warmup_steps=18)) == 1
    stream = Features([], {}, num_rows=-1)
    assert told(splits, labels, train=stream, max_steps=20, warmup_steps=10) == []
    few = Features([], {}, num_rows=9)
    assert told(splits, labels, held_out=few) == ["only 9 evaluation rows: the score says little"]


def test_the_report_names_the_numbers_of_rows_and_the_labels(tmp_path):
    from pipelines.reporting.report import describe_split

    splits, _ = split(CLASSIFY, write_rows(tmp_path / "rows.jsonl", SORTED), max_train_rows=100)
    features = Features([], {"rows": 100, "rows_cut": 2}, num_rows=100)
    assert describe_split(CLASSIFY, "train", splits.train, features) == (
        "  train: 100 of 180 rows (max_train_rows), 2 rows cut; labels: neg 60, pos 40"
    )
    features = Features([], {"rows": 20, "rows_cut": 0}, num_rows=20)
    assert describe_split(CLASSIFY, "eval", splits.held_out, features) == (
        "  eval: 20 rows, 0 rows cut; labels: neg 12, pos 8"
    )


# Hub datasets, and what a result records


def test_a_maximum_of_a_hub_dataset_is_drawn_by_label_too(monkeypatch):
    import datasets

    import pipelines.data.load

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes", "?"])}
    )
    rows = [{"text": f"row {i}", "label": int(i >= 600)} for i in range(1000)]
    whole = datasets.Dataset.from_list(rows, features=features)
    monkeypatch.setattr(pipelines.data.load, "hub_dataset", lambda *_, **options: whole)
    options = {"eval_split": "test", "max_train_rows": 50, "max_eval_rows": 10}
    for part in (100_000, 500):  # as small datasets are read, and as large ones are
        monkeypatch.setattr(pipelines.data.load, "MIN_PART", part)
        splits, labels = split(CLASSIFY, "user/data", **options)
        assert labels == ("no", "yes", "?")
        assert abs(labels_of(splits.train)[0] - 30) <= (3 if part < 1000 else 0)
        assert splits.record["train"] == {"split": "train", "rows": 50, "of": 1000}
        for index, row in enumerate(splits.train.rows):
            assert splits.train.locate(index) == f"user/data train row {rows.index(row)}"
        again, _ = split(CLASSIFY, "user/data", **options)
        assert again.train.fingerprint() == splits.train.fingerprint()


def test_a_run_records_what_was_drawn_and_evaluate_draws_it_again(tmp_path, checkpoint, capsys):
    from pipelines.evaluation.evaluate import evaluate as evaluate_result
    from pipelines.flow import run
    from pipelines.hub.card import model_card

    file = write_rows(tmp_path / "rows.jsonl", SORTED)
    source = DatasetSource(path=str(file), eval_split="test", max_train_rows=40, split_seed=3)
    recipe = Recipe(
        name="drawn",
        task=replace(CLASSIFY, dataset=source, max_length=16),
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=2, global_batch_size=4, seed=5),
        output_dir=str(tmp_path / "run"),
    )
    run(recipe)
    printed = capsys.readouterr().out
    assert "train: 40 of 180 rows (max_train_rows), 0 rows cut; labels: neg 24, pos 16" in printed
    assert "eval: 20 rows, 0 rows cut; labels: neg 12, pos 8" in printed
    assert "is one file, without a split 'test': 10 % of the rows are held out" in printed
    sidecar = json.loads((tmp_path / "run" / "task.json").read_text())
    assert sidecar["dataset"]["splits"] == {
        "reported": "eval",
        "train": {"split": "train", "rows": 40, "of": 180},
        "eval": {
            "split": "train",
            "part": "10 % of the rows",
            "shares_inputs": False,
            "rows": 20,
            "of": 20,
        },
        "split_seed": 3,
        "stratified_by": "label",
        "grouped_by": "input",
    }
    card = model_card(recipe, sidecar, "user/drawn")
    assert "10 % of the rows of train:" in card
    assert "split: train" in card
    assert evaluate_result(tmp_path / "run").equal


def test_a_stream_reports_that_it_takes_the_first_rows(tmp_path):
    from pipelines.reporting.report import describe_split

    file = write_rows(tmp_path / "rows.jsonl", [{"text": f"row {i}"} for i in range(40)])
    options = {"path": str(file), "streaming": True, "max_eval_rows": 4}
    for most, line in ((None, "streamed"), (10, "streamed, the first 10 rows")):
        task = CausalLM(dataset=DatasetSource(**options, max_train_rows=most))
        splits, _ = check_splits(task, load_splits(task.dataset))
        train = describe_split(task, "train", splits.train, Features([], {}, num_rows=-1))
        assert train == f"  train: {line}"
        held_out = Features([], {"documents": 4}, num_rows=1)
        found = describe_split(task, "eval", splits.held_out, held_out)
        assert found == "  eval: 4 documents, the first of the stream"
        assert splits.record["eval"]["part"] == "the first 4 rows"
        assert splits.record["train"]["rows"] is None
        assert [row["text"] for row in splits.held_out.rows] == [f"row {i}" for i in range(4)]


def test_a_wrong_column_of_a_file_to_score_on_is_one_line(tmp_path):
    from types import SimpleNamespace

    from pipelines.evaluation.evaluate import file_rows

    loaded = SimpleNamespace(recipe=SimpleNamespace(task=CLASSIFY), labels=("x", "y"))
    file = write_rows(tmp_path / "rows.jsonl", [{"txt": "a", "label": "x"}] * 50)
    with pytest.raises(DataError, match="no column 'text', which --task.text-column") as caught:
        file_rows(loaded, file)
    assert len(str(caught.value).splitlines()) == 1
