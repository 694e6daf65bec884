"""Rows, splits and tokens that are prepared on disk are those that a run would make in memory."""

import datetime
import gzip
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from transformers import EvalPrediction

from helpers.callbacks import NaNAt, SignalAt
from helpers.factories import ROOT, TASKS, make_tasks
from helpers.resumable_runs import command_for, cut, flip, recipe_for, weights
from pipelines import parallel
from pipelines.data import rows_on_disk
from pipelines.data.encoded_rows import EncodedRows, FileSink
from pipelines.data.formats import json_rows
from pipelines.data.load import hub_rows, load_splits, read_into_memory
from pipelines.data.rejected_file import read_lines
from pipelines.data.rows_on_disk import ChunkFile, RowsOnDisk
from pipelines.data.source import DatasetSource
from pipelines.data.splits import check_splits
from pipelines.errors import CheckpointError, DataError, NonFiniteError, Preempted
from pipelines.flow import run
from pipelines.inputs import texts
from pipelines.models.tokenizers import load_tokenizer
from pipelines.preparing.features import prepared_features
from pipelines.preparing.rows import load_prepared, read_through
from pipelines.preparing.splits import check_prepared
from pipelines.preparing.store import MARKER, Store
from pipelines.preparing.tokenizer import prepared_tokenizer, tokenizer_key
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Scratch, Tokenizer
from pipelines.tasks import replies, spans
from pipelines.tasks.base import token_ids
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.encoding import LONGEST_PIECE, cut_text, encode_texts
from pipelines.tasks.instruction import InstructionTuning, PromptReferences
from pipelines.tasks.preference import PreferenceTuning
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.replies import CHAT_TEMPLATE
from pipelines.tasks.spans import Question, Window
from pipelines.tasks.text_classification import TextClassification
from pipelines.tokenize import prepare


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of its own, which prepares small data, too."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return Store(always=True)


def prepared_splits(task, store, rejected=None):
    """Return the splits of a task, of rows on disk, and its labels."""
    return check_prepared(task, load_prepared(task.dataset, store), rejected, store)


def as_lists(row):
    """Return a row without arrays."""
    return {name: np.asarray(value).tolist() for name, value in row.items()}


def document_tasks(helpdesk):
    """Return a task of each packing."""
    task = make_tasks(helpdesk)["causal_lm"]
    return {packing: replace(task, packing=packing) for packing in ("wrapped", "bfd_split")}


def row_of_every_task(i):
    """Return a row that every task can read; the rows share prompts and contexts."""
    text, start = "a lamp " * i, 7 * (i // 2)
    messages = [
        {"role": "user", "content": f"{text}?"},
        {"role": "assistant", "content": "yes " * (i % 5 + 1)},
    ]
    return {
        "text": text,
        "text2": "broken",
        "label": "ab"[i % 2],
        "n": i / 3,
        "s": ["a", "b"],
        "id": f"q-{i}",
        "question": "Where is it, " + "please " * i,
        "context": "a lamp " * (i // 2) + "on the desk",
        "answers": {"text": ["the desk"] * (i % 3), "answer_start": [start + 3] * (i % 3)},
        "prompt": "which lamp? " * (i % 7 + 1),
        "completion": [f"number {i}", "naïve 日本"],
        "chosen": f"number {i}",
        "rejected": "none",
        "messages": messages,
    }


def tasks_of(source, documents):
    """Return tasks on rows of `row_of_every_task`, and on `documents`."""
    classes = TextClassification(dataset=source, max_length=32)
    several = {"problem_type": "multi_label_classification", "label_column": "s"}
    answers = QuestionAnswering(dataset=source, version_2_with_negative=True)
    replies = InstructionTuning(dataset=source, max_length=32)
    chats = replace(replies, chat=True, completion_column="messages", max_length=512)
    return {
        **documents,
        "classes": classes,
        "pairs": replace(classes, text_pair_column="text2"),
        "numbers": replace(classes, problem_type="regression", label_column="n"),
        "sets": replace(classes, **several, label_form="list"),
        "answers": answers,
        "windows": replace(answers, max_length=16, stride=3),
        "replies": replies,
        "chats": chats,
        "preferences": PreferenceTuning(dataset=source, max_length=32),
    }


TASKS_OF = (
    *("wrapped", "bfd_split", "classes", "pairs", "numbers", "sets"),
    *("answers", "windows", "replies", "chats", "preferences"),
)


@pytest.fixture
def every_task(helpdesk, tmp_path):
    """Tasks of all kinds, by the names in TASKS_OF, on rows of a file."""
    lines = [json.dumps(row_of_every_task(i)) for i in range(1, 40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source = DatasetSource(path=str(tmp_path / "rows.jsonl"))
    return tasks_of(source, document_tasks(helpdesk))


@pytest.fixture
def chat_tokenizer(tokenizer):
    """A tokenizer that formats chats."""
    copied = pickle.loads(pickle.dumps(tokenizer))
    copied.chat_template = CHAT_TEMPLATE
    return copied


def as_values(context):
    """Return a task's context without arrays and lazy sequences."""
    if isinstance(context, np.ndarray):
        return context.tolist()
    if isinstance(context, Window | Question | PromptReferences):
        return {name: as_values(value) for name, value in vars(context).items()}
    if isinstance(context, Sequence) and not isinstance(context, str):
        return [as_values(each) for each in context]
    return context


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TASKS_OF)
def test_encoded_rows_on_disk_are_those_in_memory(
    name, training, store, every_task, chat_tokenizer, monkeypatch
):
    task, tokenizer = every_task[name], chat_tokenizer
    expected_splits, labels = check_splits(task, load_splits(task.dataset))
    expected = task.features(expected_splits.train, tokenizer, labels, training=training)
    splits, labels_on_disk = prepared_splits(task, store)
    assert labels_on_disk == labels
    for module in (spans, replies):
        monkeypatch.setattr(module, "BATCH_WITH_OFFSETS", 100)  # many batches
    for _ in range(2):  # written, and then found
        found = prepared_features(
            task, splits.train, tokenizer, labels, training=training, store=store
        )
        assert isinstance(found.dataset, EncodedRows)
        assert list(map(as_lists, found.dataset)) == list(map(as_lists, expected.dataset))
        assert [as_lists(found.dataset[i]) for i in (0, -1)] == [
            as_lists(expected.dataset[i]) for i in (0, -1)
        ]
        assert (found.report, found.num_rows) == (expected.report, expected.num_rows)
        assert as_values(found.context) == as_values(expected.context)
        assert list(found.lengths) == list(expected.lengths)
        assert found.locate(3) == expected.locate(3)
        monkeypatch.setattr(type(task), "encode", None)
    ids = {name for name in found.dataset[0] if name.endswith("_ids")}
    assert {row[each].dtype for row in found.dataset for each in ids} == {np.dtype(np.int64)}


@pytest.fixture
def many_parts(monkeypatch):
    """Let files of 39 rows have several batches and chunks; set the number of workers."""
    monkeypatch.setattr(rows_on_disk, "CHUNK_ROWS", 7)
    monkeypatch.setattr(json_rows, "BATCH_LINES", 5)
    return lambda workers: monkeypatch.setattr(parallel, "num_cores", lambda: workers)


def stored_bytes(root):
    """Return the bytes of every prepared file by its path; the same data has the same paths."""
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*.*")}


@pytest.mark.parametrize("name", TASKS_OF)
def test_one_and_two_workers_store_the_same_bytes(
    name, many_parts, every_task, chat_tokenizer, tmp_path, monkeypatch
):
    task, stored = every_task[name], []
    for workers in (1, 2):
        many_parts(workers)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / f"with {workers}")
        store = Store(always=True)
        splits, labels = prepared_splits(task, store)
        assert len([*splits.train.rows.parts()]) > 2
        for training, rows in ((True, splits.train), (False, splits.held_out)):
            prepared_features(task, rows, chat_tokenizer, labels, training=training, store=store)
        stored.append(stored_bytes(store.root))
    assert stored[0] == stored[1]
    assert len([name for name in stored[0] if name.endswith("rows.arrow")]) == 2  # train and eval


@pytest.mark.parametrize("workers", [1, 2])
def test_unusable_rows_are_told_in_the_order_of_the_file(workers, many_parts, store, tmp_path):
    lines = [json.dumps({"text": f"text {i}"}) for i in range(1, 40)]
    lines[12], lines[30], lines[33] = '{"text": 13}', '{"text": }', '{"text": null}'
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    many_parts(workers)
    task = CausalLM(dataset=DatasetSource(path=str(file)), block_size=8)
    with pytest.raises(DataError) as in_memory:
        check_splits(task, load_splits(task.dataset))
    with pytest.raises(DataError) as caught:
        prepared_splits(task, store)
    assert str(caught.value) == str(in_memory.value)
    assert str(caught.value).splitlines()[:3] == [
        f"{file}:13: column 'text' holds 13, not a text. Columns: text.",
        f"{file}:31: not JSON: Expecting value.",
        f"{file}:34: column 'text' holds None, not a text. Columns: text.",
    ]
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["classes", "answers", "replies"])
def test_rows_on_disk_are_read_once_to_check_and_split_them(name, many_parts, store, every_task):
    """Labels and cautions that are the task's own read them again."""
    many_parts(1)
    task = every_task[name]
    raw = load_prepared(task.dataset, store)
    read: list[int] = []
    chunks = raw.train.rows.chunks
    counted = CountedChunks(chunks.path, chunks.offsets, chunks.starts, read)
    rows = RowsOnDisk(counted, raw.train.rows.key)
    check_prepared(task, replace(raw, train=replace(raw.train, rows=rows)), None, store)
    num_chunks = len(chunks.starts) - 1
    assert num_chunks == 6  # of 39 rows, 7 in each
    own = {"classes": 3, "answers": 0, "replies": 1}[name]  # two of labels, and of cautions one
    assert len(read) <= (1 + own) * num_chunks + own


@dataclass(frozen=True)
class CountedChunks(ChunkFile):
    """Chunks that note which of them are read."""

    counted: list

    def read(self, chunk):
        self.counted.append(chunk)
        return super().read(chunk)


@pytest.mark.parametrize("name", ["answers", "windows"])
def test_answers_are_decoded_from_windows_on_disk_as_in_memory(name, store, every_task, tokenizer):
    task = every_task[name]
    expected_splits, _ = check_splits(task, load_splits(task.dataset))
    splits, _ = prepared_splits(task, store)
    both = [
        task.features(expected_splits.train, tokenizer, (), training=False),
        prepared_features(task, splits.train, tokenizer, (), training=False, store=store),
    ]
    lengths = [len(row["input_ids"]) for row in both[0].dataset]
    logits = np.random.default_rng(0).normal(size=(len(lengths), max(lengths), 2))
    targets = np.asarray([row["labels"] for row in both[0].dataset])
    prediction = EvalPrediction(logits, targets)
    assert task.score(prediction, both[1], ()) == task.score(prediction, both[0], ())
    results = [task.row_results(prediction, each, ()) for each in both]
    assert results[0] == results[1]
    json.dumps([each.prediction for each in results[1]])  # no numbers of NumPy
    for index in range(both[0].num_rows):
        own = task.tokens_read(both[0], index)
        assert list(task.tokens_read(both[1], index)) == list(own)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("answers", {"max_question_length": 1}, "35 of 35 rows do not fit"),
        ("replies", {"max_length": 16}, "rows do not fit"),
        ("preferences", {"max_length": 16}, "rows do not fit"),
    ],
)
def test_rows_that_do_not_fit_are_told_as_in_memory(
    name, options, reason, store, every_task, tokenizer
):
    task = replace(every_task[name], **options, max_truncated_fraction=0.0)
    expected_splits, _ = check_splits(task, load_splits(task.dataset))
    splits, _ = prepared_splits(task, store)
    with pytest.raises(DataError, match=reason) as expected:
        task.features(expected_splits.train, tokenizer, (), training=True)
    with pytest.raises(DataError) as told:
        prepared_features(task, splits.train, tokenizer, (), training=True, store=store)
    assert str(told.value) == str(expected.value)
    assert not [*store.root.glob("tokens-*/")]


def test_a_table_holds_numbers_beyond_the_vocabulary(tmp_path):
    rows = [
        {"input_ids": [0, 299], "labels": [-100, 299], "seq_lengths": [70_000], "first": 2**40},
        {"input_ids": [], "labels": [], "seq_lengths": [1, 2], "first": -1},
    ]
    for largest_id in (299, 2**16):
        sink = FileSink(tmp_path / f"{largest_id}.arrow", largest_id)
        if largest_id > 299:
            rows[0]["input_ids"][0] = largest_id
        for row in rows:
            sink.append(row)
        assert list(map(as_lists, sink.close())) == rows


def test_wrapped_blocks_are_the_documents_one_after_the_other(store, helpdesk, tokenizer):
    task = document_tasks(helpdesk)["wrapped"]
    splits, _ = prepared_splits(task, store)
    texts = [row["text"] for row in splits.train.rows]
    stream = [tokenizer.eos_token_id]
    for ids in token_ids(tokenizer, texts):
        stream += [*ids, tokenizer.eos_token_id]
    # A block of 64 begins with the last token of the one before: 63 new tokens each
    whole = (len(stream) - 1) // 63
    expected = [stream[63 * block : 63 * block + 64] for block in range(whole)]
    found = prepared_features(task, splits.train, tokenizer, (), training=True, store=store)
    assert [row["input_ids"].tolist() for row in found.dataset] == expected
    assert found.report == {
        "documents": len(texts),
        "tokens": len(stream),
        "blocks": whole,
        "tokens_left_out": len(stream) - 1 - 63 * whole,
    }


def test_fitted_blocks_hold_each_document_once(store, helpdesk, tokenizer):
    task = document_tasks(helpdesk)["bfd_split"]
    splits, _ = prepared_splits(task, store)
    found = prepared_features(task, splits.train, tokenizer, (), training=True, store=store)
    pieces = []
    for row in found.dataset:
        assert len(row["input_ids"]) <= 64
        parts = np.split(row["input_ids"], np.cumsum(row["seq_lengths"])[:-1])
        pieces += [part.tolist() for part in parts]
    expected = []
    for ids in token_ids(tokenizer, [row["text"] for row in splits.train.rows]):
        document = [tokenizer.eos_token_id, *ids, tokenizer.eos_token_id]
        expected += [document[i : i + 64] for i in range(0, len(document) - 1, 63)]
    assert sorted(pieces) == sorted(expected)


def write_formats(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Write the same kinds of rows in several formats; return the files of each."""
    odd = [
        {"text": "naïve 日本", "n": 1},
        {"text": "two", "n": 2.5, "more": {"a": [1, None, True]}},
        {"n": 10**30, "text": None},
        {"text": 'quoted "x"\n', "n": float("inf")},
    ]
    lines = [json.dumps(row) for row in odd]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "bad.jsonl").write_text("\n".join([lines[0], "{not json", "", lines[1]]))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "rows.csv").write_text('text,n\nNA,1\n"a,\nb",\nshort\nlast,007\n')
    (folder / "rows.txt").write_text("All of it\nis one row.")
    table = pyarrow.table(
        {
            "text": ["a", "nul \0", None],
            "day": [datetime.date(2020, 1, i) for i in (1, 2, 3)],
            "bytes": [b"\xff", b"", None],
            "price": [Decimal("1.50"), None, Decimal("2.00")],
            "kind": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
            "map": pyarrow.array([[("k", 1)], [], None], pyarrow.map_("string", "int32")),
        }
    )
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    pyarrow.parquet.write_table(table.select(["text"]), folder / "other.parquet")
    formats = {file.name: (file,) for file in folder.iterdir()}
    return formats | {
        "shards": (folder / "bad.jsonl", folder / "rows.jsonl", folder / "rows.csv"),
        "other columns": (folder / "rows.parquet", folder / "other.parquet"),
    }


FORMATS = ("bad.jsonl", "rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.txt", "rows.parquet")


@pytest.mark.parametrize("name", [*FORMATS, "shards", "other columns"])
def test_rows_on_disk_are_those_in_memory(name, store, tmp_path):
    (tmp_path / "data").mkdir()
    files = write_formats(tmp_path / "data")[name]
    expected, found = read_into_memory(files), read_through(store, files)
    assert isinstance(found.rows, RowsOnDisk)
    assert len(found.rows) == len(expected.rows)
    # repr: 1 is not 1.0 and not True, a tuple is no list, and NaN equals itself
    assert list(map(repr, found.rows)) == list(map(repr, expected.rows))
    assert [repr(found.rows[i]) for i in range(len(found.rows))] == list(map(repr, expected.rows))
    for index in range(len(expected.rows)):
        assert found.locate(index) == expected.locate(index)
        assert found.row_number(index) == expected.row_number(index)
    assert found.fingerprint() == expected.fingerprint()
    assert [(r.location, r.line, r.reason) for r in found.rejected] == [
        (r.location, r.line, r.reason) for r in expected.rejected
    ]
    some, expected_some = found.select([0]), expected.select([0])
    assert (some.locate(0), list(some.rows)) == (expected_some.locate(0), list(expected_some.rows))


def examples_as_values(examples):
    """Return all that a split is, as comparable values."""
    rejected = [(r.file, int(r.line), r.location, r.reason, r.row) for r in examples.rejected]
    rows = list(examples.rows)
    locations = [examples.locate(index) for index in range(len(rows))]
    return rows, locations, examples.total, rejected, examples.label_names


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"test_fraction": 0.2, "max_train_rows": 20, "max_test_rows": 3},
        {"eval_split": "test", "max_eval_rows": 5, "on_bad_row": "skip"},
    ],
)
@pytest.mark.parametrize("name", ["causal_lm", "text_classification", "question_answering"])
def test_splits_on_disk_are_those_in_memory(name, options, store, helpdesk, tmp_path):
    task = make_tasks(helpdesk)[name]
    data = tmp_path / "data"
    shutil.copytree(task.dataset.path, data)
    if options.get("on_bad_row"):
        for file in data.glob("*.jsonl"):
            lines = file.read_text().splitlines()
            lines[3:3] = ["no json", json.dumps({"text": 7, "context": 7, "question": "?"})]
            file.write_text("\n".join(lines))
    path = str(data if "eval_split" in options else data / "train.jsonl")
    task = replace(task, dataset=replace(task.dataset, path=path, eval_split=None))
    task = replace(task, dataset=replace(task.dataset, **options))
    listed = [tmp_path / "memory.jsonl", tmp_path / "disk.jsonl"]
    expected, expected_labels = check_splits(task, load_splits(task.dataset), listed[0])
    for _ in range(2):  # written, and then found
        splits, labels = prepared_splits(task, store, listed[1])
        assert labels == expected_labels
        assert splits.record == expected.record
        for name in ("train", "held_out", "test"):
            one, other = getattr(splits, name), getattr(expected, name)
            assert (one is None) == (other is None)
            if other is not None:
                assert examples_as_values(one) == examples_as_values(other)
                assert one.fingerprint() == other.fingerprint()
        assert read_lines(listed[1]) == read_lines(listed[0])


def test_a_single_document_is_cut_at_the_same_character(store, tmp_path):
    (tmp_path / "all.txt").write_text("word " * 1000)
    task = CausalLM(dataset=DatasetSource(path=str(tmp_path / "all.txt")), block_size=16)
    expected, _ = check_splits(task, load_splits(task.dataset))
    for _ in range(2):
        splits, _ = prepared_splits(task, store)
        assert list(splits.train.rows) == list(expected.train.rows)
        assert list(splits.held_out.rows) == list(expected.held_out.rows)
        assert splits.held_out.fingerprint() == expected.held_out.fingerprint()
        assert splits.train.locate(0) == expected.train.locate(0)


@pytest.mark.parametrize(
    ("name", "how", "options"),
    [
        *((name, "full", {}) for name in TASKS if name != "preference_tuning"),
        ("preference_tuning", "lora", {}),
        ("instruction_tuning", "full", {"packing": True}),
    ],
)
def test_a_run_of_prepared_rows_ends_in_the_same_bytes(
    name, how, options, checkpoint, helpdesk, tmp_path, store
):
    plain = recipe_for(name, how, checkpoint, helpdesk, tmp_path / "plain")
    plain = replace(plain, task=replace(plain.task, **options))
    run(plain)
    assert not store.root.exists()  # the rows are few
    prepare(plain)
    stopped = replace(plain, output_dir=str(tmp_path / "prepared"))
    with pytest.raises(Preempted, match="stopped at step 3"):
        run(stopped, [SignalAt(2)])
    run(stopped)
    assert weights(tmp_path / "prepared") == weights(tmp_path / "plain")
    metrics = [json.loads((tmp_path / n / "task.json").read_text()) for n in ("plain", "prepared")]
    assert metrics[0]["metrics"]["loss"] == metrics[1]["metrics"]["loss"]
    assert metrics[0]["dataset"] == metrics[1]["dataset"]
    assert not [*store.root.glob("tokens-*/cache-*")]  # which nobody would hash


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("causal_lm", r"block \d+, block \d+"),
        ("instruction_tuning", r"\S+/train.jsonl:\d+, \S+/train.jsonl:\d+"),
    ],
)
def test_a_step_that_is_not_finite_names_its_rows(
    name, rows, checkpoint, helpdesk, tmp_path, store
):
    recipe = recipe_for(name, "full", checkpoint, helpdesk, tmp_path / "run")
    prepare(recipe)
    with pytest.raises(NonFiniteError, match=f"It was the step of {rows}"):
        run(recipe, [NaNAt(2)])


def files_of(store, kind):
    """Return the one folder of a kind in the store."""
    [folder] = [each for each in store.root.glob(f"{kind}-*") if each.is_dir()]
    return folder


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("file", ["rows/rows.arrows", "splits/train.int64", "tokens/rows.arrow"])
def test_a_damaged_file_is_noticed_and_made_again(file, damage, store, helpdesk, tokenizer, capsys):
    task = document_tasks(helpdesk)["wrapped"]

    def prepare_all():
        splits, _ = prepared_splits(task, store)
        made = prepared_features(task, splits.train, tokenizer, (), training=True, store=store)
        return list(map(as_lists, made.dataset))

    source = replace(task.dataset, path=str(helpdesk / "documents" / "train.jsonl"))
    task = replace(task, dataset=replace(source, eval_split=None))
    before = prepare_all()
    kind, name = file.split("/")
    capsys.readouterr()
    damage(files_of(store, kind) / name)
    assert prepare_all() == before
    message = " ".join(capsys.readouterr().out.split())
    assert f"is damaged, and prepared again: {name}" in message
    assert prepare_all() == before
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "file"), [("answers", "windows.arrow"), ("replies", "prompts.arrow")]
)
def test_a_damaged_table_of_a_scorer_is_made_again(
    name, file, store, every_task, tokenizer, capsys
):
    task = every_task[name]
    splits, _ = prepared_splits(task, store)
    contexts = []
    for _ in range(2):
        made = prepared_features(task, splits.train, tokenizer, (), training=False, store=store)
        contexts.append(as_values(made.context))
        flip(files_of(store, "tokens") / file)
    assert contexts[0] == contexts[1]
    assert f"prepared again: {file}" in " ".join(capsys.readouterr().out.split())


def test_a_marker_that_is_unreadable_is_damage(store, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}')
    read_through(store, (tmp_path / "rows.jsonl",))
    marker = files_of(store, "rows") / MARKER
    for content in ("", "{", "[1]", '{"rows.arrows": 5}'):
        marker.write_text(content)
        assert list(read_through(store, (tmp_path / "rows.jsonl",)).rows) == [{"text": "a"}]
        assert f"{MARKER} is unreadable" in " ".join(capsys.readouterr().out.split())


def test_a_file_that_changed_in_place_is_read_again(store, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "before"}')
    assert list(read_through(store, (file,)).rows) == [{"text": "before"}]
    times = file.stat()
    file.write_text('{"text": "after!"}')  # of the same size
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert list(read_through(store, (file,)).rows) == [{"text": "after!"}]


def test_a_file_that_moved_is_found_again_under_its_new_name(store, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rows.jsonl").write_text('{"text": "x"}\nbad')
    read_through(store, (tmp_path / "a" / "rows.jsonl",))
    (tmp_path / "a").rename(tmp_path / "b")
    found = read_through(store, (tmp_path / "b" / "rows.jsonl",))
    assert found.locate(0) == f"{tmp_path}/b/rows.jsonl:1"
    assert found.rejected[0].location == f"{tmp_path}/b/rows.jsonl:2"
    assert len([*store.root.glob("rows-*/")]) == 1


def test_another_tokenizer_or_block_size_has_its_own_tokens(store, helpdesk, tokenizer):
    task = document_tasks(helpdesk)["wrapped"]
    splits, _ = prepared_splits(task, store)
    other = pickle.loads(pickle.dumps(tokenizer))
    other.add_tokens(["lamp"])
    for each, made_by in ((task, tokenizer), (task, other), (task.with_length(32), tokenizer)):
        found = prepared_features(each, splits.train, made_by, (), training=True, store=store)
        expected = each.features(splits.train, made_by, (), training=True)
        assert list(map(as_lists, found.dataset)) == list(map(as_lists, expected.dataset))
    assert len([*store.root.glob("tokens-*/")]) == 3


def test_an_error_names_file_and_line_and_leaves_nothing(store, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n{"text": 5}\n{"text": "b"}\n')
    task = CausalLM(dataset=DatasetSource(path=str(file)), block_size=4)
    with pytest.raises(DataError, match=r"rows.jsonl:2: column 'text' holds 5, not a text"):
        prepared_splits(task, store)
    assert [each.name for each in store.root.iterdir() if each.is_dir()] == [
        files_of(store, "rows").name
    ]


def test_a_disk_without_room_is_told_before_anything_is_written(store):
    def build(folder):
        raise AssertionError

    with pytest.raises(CheckpointError, match=r"No space left.*needs about 1,000,000,000,000 MB"):
        store.folder("rows", {}, build, num_bytes=10**18)
    assert not [each for each in store.root.iterdir() if each.is_dir()]


def test_a_cache_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"could not be written.*set HF_DATASETS_CACHE"):
        Store().folder("rows", {}, Path.rmdir, num_bytes=1)


def test_a_long_text_is_cut_where_its_tokens_stay_the_same(tokenizer, helpdesk):
    lines = (helpdesk / "documents" / "train.jsonl").read_text().splitlines()
    text = "\n".join(json.loads(line)["text"] for line in lines) * 20
    pieces = [piece for piece, _ in cut_text(tokenizer, text)]
    assert [ends for _, ends in cut_text(tokenizer, text)] == [*[False] * (len(pieces) - 1), True]
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= LONGEST_PIECE
    parts = token_ids(tokenizer, pieces)
    whole = token_ids(tokenizer, [text])[0]
    assert [i for part in parts for i in part] == whole
    assert [*encode_texts(tokenizer, ["a", text, "b"])][1] == whole


def test_a_tokenizer_that_begins_each_text_in_its_own_way_gets_whole_texts(tokenizer):
    from tokenizers import normalizers

    other = pickle.loads(pickle.dumps(tokenizer))
    other.backend_tokenizer.normalizer = normalizers.Prepend("x")
    text = "some words " * (LONGEST_PIECE // 5)
    assert [*cut_text(other, text)] == [(text, True)]


def test_encoded_rows_reach_another_process(store, helpdesk, tokenizer):
    task = document_tasks(helpdesk)["wrapped"]
    splits, _ = prepared_splits(task, store)
    rows = prepared_features(task, splits.train, tokenizer, (), training=True, store=store).dataset
    sent = pickle.dumps(rows)
    assert len(sent) < 1000
    assert list(map(as_lists, pickle.loads(sent))) == list(map(as_lists, rows))


SLOW_BUILD = """
import sys, time
from pathlib import Path
import datasets
from pipelines.preparing.store import Store
datasets.config.HF_DATASETS_CACHE = sys.argv[1]
def build(folder):
    Path(sys.argv[2]).touch()
    time.sleep(float(sys.argv[3]))
    (folder / "file").write_text("whole")
store = Store()
folder = store.folder("rows", {}, build, num_bytes=1)
print((folder / "file").read_text(), store.used[folder])
"""


def start_build(commands, tmp_path, name, seconds):
    """Start a process that prepares a folder; it makes the file `name` when it begins."""
    words = [commands.python, "-c", SLOW_BUILD, str(tmp_path / "cache"), str(tmp_path / name)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*words, str(seconds)], stdout=subprocess.PIPE, text=True, env=environment
    )


def wait_for(file):
    """Wait until a file is there."""
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("killed", [False, True])
def test_one_process_prepares_and_the_next_one_where_it_is_killed(killed, commands, tmp_path):
    first = start_build(commands, tmp_path, "first", 60 if killed else 4)
    wait_for(tmp_path / "first")
    second = start_build(commands, tmp_path, "second", 0)
    time.sleep(2)  # a fork begins in a tenth of a second
    assert not (tmp_path / "second").exists()  # it waits, or has not got so far yet
    if killed:
        first.send_signal(signal.SIGKILL)
    out = second.communicate(timeout=60)[0].splitlines()
    assert out[-1] == f"whole {killed}"
    if not killed:
        assert first.communicate(timeout=60)[0].splitlines()[-1] == "whole True"
    first.wait()
    [folder] = [each for each in (tmp_path / "cache" / "gpt2-recipes").iterdir() if each.is_dir()]
    assert sorted(each.name for each in folder.iterdir()) == [MARKER, "file"]


def test_large_hub_datasets_stay_on_disk_and_small_ones_are_lists(tmp_path):
    def rows():
        for i in range(9000):
            yield {"text": f"{i} " + "x" * 1000, "when": datetime.date(2020, 1, 1 + i % 28)}

    made = datasets.Dataset.from_generator(rows, cache_dir=str(tmp_path))
    large = hub_rows(made, "train", None)
    assert isinstance(large, RowsOnDisk)
    assert list(large) == list(rows())
    some = hub_rows(made, "train", [5, 8999])
    assert list(some) == [large[5], large[8999]]
    assert large.key == some.key != hub_rows(made, "validation", None).key
    small = made.select(range(10))
    assert hub_rows(small.flatten_indices(), "train", [1, 3]) == [large[1], large[3]]


def test_a_tokenizer_is_trained_once(store, helpdesk):
    source = DatasetSource(path=str(helpdesk / "documents" / "train.jsonl"))
    size = Scratch(size="tiny", n_positions=64, tokenizer=Tokenizer(vocab_size=300))
    recipe = Recipe(name="x", model=size, task=CausalLM(dataset=source, block_size=64))
    splits, _ = prepared_splits(recipe.task, store)
    expected = load_tokenizer(size, texts(splits.train), max_length=64)
    for _ in range(2):
        found = prepared_tokenizer(recipe, splits.train, texts(splits.train), store)
        assert found.get_vocab() == expected.get_vocab()
        assert found("a lamp 12")["input_ids"] == expected("a lamp 12")["input_ids"]
        assert tokenizer_key(found) == tokenizer_key(expected)
    assert len([*store.root.glob("tokenizer-*/")]) == 1


def test_the_command_says_what_it_wrote_and_what_it_found(store, checkpoint, helpdesk, tmp_path):
    recipe = recipe_for("causal_lm", "full", checkpoint, helpdesk, tmp_path / "run")
    command = command_for(recipe, tmp_path)  # writes recipe.json
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }

    def tokenize(*flags):
        words = [command[0], "-m", "pipelines", "tokenize", str(tmp_path / "recipe.json"), *flags]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout + done.stderr

    code, printed = tokenize()
    assert code == 0, printed
    assert re.search(r"train: \d+ documents, [\d,]+ tokens, \d+ blocks", printed)
    assert re.search(r"MB written in [\d.]+ s\n +/\S+/gpt2-recipes/rows-", printed)
    assert not (tmp_path / "run").exists()
    code, printed = tokenize("--task.dataset.streaming", "--train.max-steps", "1")
    assert (code, "a stream is tokenised while it is read" in printed) == (2, True)
    assert re.search(r"MB found in", tokenize()[1])
