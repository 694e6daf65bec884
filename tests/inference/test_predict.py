"""Files of rows are answered in order, once each, whatever stops the command in between."""

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from helpers.factories import ROOT
from pipelines.data.load import read_file
from pipelines.data.rows import Examples
from pipelines.errors import CheckpointError, DataError, RecipeError
from pipelines.hub.load import load_result
from pipelines.inference.predict import predict_examples, predict_file, predict_rows
from pipelines.inference.resumable_jsonl import map_file, progress_file

CLI = ("-m", "pipelines")
HELPERS = ROOT / "tests" / "helpers"
SETTINGS = {"command": "count", "precision": None}


@pytest.fixture(scope="module")
def results(adapters):
    """A classifier and an answerer."""
    return adapters("text_classification", "question_answering")


def write(file, rows):
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def lines(file):
    """Read JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def count(examples):
    """Answer with the length of a text; a row without one cannot be used."""
    for index, row in enumerate(examples.rows):
        if "text" not in row:
            raise DataError(f"{examples.locate(index)}: no text.")
    return [{"length": len(row["text"])} for row in examples.rows]


ROWS = [{"id": i, "text": "ä" * (i % 7)} for i in range(23)]
COUNTED = [{"id": i, "length": i % 7} for i in range(23)]


def test_predictions_in_batches_of_like_lengths_are_those_of_single_rows(results, helpdesk):
    for name, data in (("text_classification", "classify"), ("question_answering", "answer")):
        loaded = load_result(results / name)
        rows = read_file(helpdesk / data / "test.jsonl").rows[:12]
        together = predict_examples(loaded, Examples(rows, "rows"), batch_size=5)
        for row, found in zip(rows, together, strict=True):
            (alone,) = predict_examples(loaded, Examples([row], "row"))
            score, alone_score = found.pop("score"), alone.pop("score")
            assert score == pytest.approx(alone_score, abs=1e-5)
            scores, alone_scores = found.pop("scores", {}), alone.pop("scores", {})
            assert scores == pytest.approx(alone_scores, abs=1e-5)
            assert found == alone


def test_a_label_comes_with_the_probability_of_each(results):
    loaded = load_result(results / "text_classification")
    (found,) = predict_examples(loaded, Examples([{"text": "The hinge is broken."}], "rows"))
    assert tuple(found["scores"]) == loaded.labels
    assert sum(found["scores"].values()) == pytest.approx(1)
    assert found["score"] == found["scores"][found["label"]] == max(found["scores"].values())


@pytest.mark.parametrize("task", ["text_classification", "question_answering"])
def test_rows_that_are_cut_are_counted_and_never_refused(results, task, tmp_path, capsys):
    loaded = load_result(results / task)
    strict = replace(loaded.recipe.task, max_truncated_fraction=0.0)
    loaded = replace(loaded, recipe=replace(loaded.recipe, task=strict))
    long, kind = "lamp " * 200, "questions" if "question" in task else "rows"
    texts = ["A lamp", long, long, "A desk"]
    rows = [{"text": text, "question": text, "context": "A lamp."} for text in texts]
    file, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    predict_rows(loaded, file, out, {})
    said = capsys.readouterr()
    assert said.err.strip().splitlines()[-1].strip() == (
        f"2 of 4 {kind} are longer than the model reads, and were cut as in training"
    )
    for row, together in zip(rows, lines(out), strict=True):
        (alone,) = predict_examples(loaded, Examples([row], "row"))
        assert alone["score"] == pytest.approx(together["score"], abs=1e-5)
    predict_rows(loaded, write(file, rows[:1]), None, {})
    assert "longer" not in capsys.readouterr().err


@pytest.mark.parametrize("chunk_size", [1, 5, 23, 100])
def test_answers_stand_in_the_order_of_the_rows(tmp_path, chunk_size):
    out = tmp_path / "out.jsonl"
    file = write(tmp_path / "in.jsonl", ROWS)
    map_file(file, count, out, SETTINGS, chunk_size=chunk_size)
    assert lines(out) == COUNTED
    before = out.stat().st_mtime_ns
    map_file(file, count, out, SETTINGS, chunk_size=chunk_size)  # nothing is left to do
    assert lines(out) == COUNTED
    write(file, [*ROWS, {"text": "abc"}])
    map_file(file, count, out, SETTINGS, chunk_size=chunk_size)
    assert lines(out) == [*COUNTED, {"length": 3}]
    assert out.stat().st_mtime_ns > before


def test_a_chunk_ends_where_its_rows_come_to_so_much_text(tmp_path):
    seen = []

    def watched(examples):
        seen.append([row["text"] for row in examples.rows])
        return count(examples)

    texts = ["ab", "c", "d", "efghij", "k", "l", "m", "n"]
    file = write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    map_file(file, watched, tmp_path / "out.jsonl", SETTINGS, chunk_size=3, chunk_characters=4)
    assert seen == [["ab", "c", "d"], ["efghij"], ["k", "l", "m"], ["n"]]
    assert lines(tmp_path / "out.jsonl") == [{"length": len(text)} for text in texts]


@pytest.mark.parametrize("half", [b"", b'{"id": 3, "le', b'{"id": 3, "length": 3}\n{"i'])
def test_no_row_is_lost_or_doubled_wherever_it_stops(tmp_path, monkeypatch, half):
    class Killed(BaseException):
        pass

    left = 0

    def dying(call):
        def called(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*arguments)

        return called

    monkeypatch.setattr("pipelines.inference.resumable_jsonl.os.fsync", dying(os.fsync))
    monkeypatch.setattr("pipelines.inference.resumable_jsonl.os.replace", dying(os.replace))
    file = write(tmp_path / "in.jsonl", ROWS)
    num_killed = 0
    for moment in range(100):
        out = tmp_path / f"{moment}.jsonl"
        left = moment
        try:
            map_file(file, count, out, SETTINGS, chunk_size=4)
        except Killed:
            num_killed += 1
            assert lines(out) == COUNTED[: len(lines(out))]
            if progress_file(out).exists():
                with out.open("ab") as more:
                    more.write(half)
        left = 1000
        map_file(file, count, out, SETTINGS, chunk_size=4)
        assert lines(out) == COUNTED, moment
        if num_killed == moment:
            break
    assert num_killed > 12  # 6 chunks, each with 3 moments to die at


def test_a_killed_command_goes_on_and_ends_in_the_same_bytes(results, helpdesk, tmp_path):
    rows = read_file(helpdesk / "classify" / "test.jsonl").rows
    file = write(tmp_path / "in.jsonl", [rows[i % 32] | {"id": i} for i in range(1500)])
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    folder = results / "text_classification"
    predict_file(str(folder), file, out=whole, batch_size=1)
    command = [sys.executable, *CLI, "predict", folder, file, "--out", out, "--batch-size", "1"]
    child = subprocess.Popen([str(word) for word in command], cwd=tmp_path)
    while child.poll() is None and not (out.exists() and out.stat().st_size > 30_000):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait(20) == -signal.SIGKILL
    done = json.loads(progress_file(out).read_text())["rows"]
    assert 0 < done < 1500
    predict_file(str(folder), file, out=out, batch_size=1)
    assert out.read_bytes() == whole.read_bytes()
    assert [line["id"] for line in lines(out)] == list(range(1500))


def test_a_reader_that_has_seen_enough_ends_it_quietly(results, helpdesk, tmp_path):
    folder = results / "text_classification"
    file = write(tmp_path / "in.jsonl", [{"text": f"ticket {n}"} for n in range(3000)])
    command = [sys.executable, *CLI, "predict", folder, file, "--batch-size", "1"]
    child = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "label" in json.loads(child.stdout.readline())
    child.stdout.close()  # as `| head -1` does
    assert child.stderr.read() == ""
    assert child.wait(60) == 0


@pytest.mark.parametrize("broken", ["{not json", '{"id": 9}'])
def test_a_broken_row_keeps_those_before_it_and_is_repaired(tmp_path, broken):
    out, file = tmp_path / "out.jsonl", write(tmp_path / "in.jsonl", ROWS)
    good = file.read_text()
    there = good.splitlines()
    there[9] = broken
    file.write_text("\n".join(there) + "\n")
    with pytest.raises(DataError, match=r"in.jsonl:10: no"):
        map_file(file, count, out, SETTINGS, chunk_size=8)
    assert lines(out) == COUNTED[:9]
    file.write_text(good)
    map_file(file, count, out, SETTINGS, chunk_size=8)
    assert lines(out) == COUNTED


def test_ctrl_c_is_told_without_a_trace(tmp_path, monkeypatch, capsys):
    from pipelines.cli import console

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.inference.predict.predict_file", interrupted)
    monkeypatch.setattr("sys.argv", ["gpt2-recipes", "predict", "a", "b"])
    with pytest.raises(SystemExit) as stopped:
        console()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C.\n"


def test_a_terminal_sees_how_many_rows_are_done(tmp_path, monkeypatch, capsys):
    file, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    map_file(file, count, out, SETTINGS, chunk_size=8)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    write(file, ROWS * 2)
    map_file(file, count, out, SETTINGS, chunk_size=8)
    said = capsys.readouterr()
    assert "46/46" in said.err
    assert said.out == ""


def test_another_input_another_model_and_a_file_of_somebody_else_are_refused(tmp_path):
    out, file = tmp_path / "out.jsonl", write(tmp_path / "in.jsonl", ROWS)
    map_file(file, count, out, SETTINGS, chunk_size=8)
    kept = out.read_bytes()
    with pytest.raises(RecipeError, match="was begun with precision None, not '8bit'"):
        map_file(file, count, out, SETTINGS | {"precision": "8bit"}, chunk_size=8)
    other = write(tmp_path / "other.jsonl", [*ROWS[:5], {"text": "new"}, *ROWS[6:]])
    with pytest.raises(RecipeError, match=r"first 23 rows of .*other.jsonl are not those of"):
        map_file(other, count, out, SETTINGS, chunk_size=8)
    with pytest.raises(RecipeError, match=r"first 23 rows of .*other.jsonl are not those of"):
        map_file(write(other, ROWS[:22]), count, out, SETTINGS, chunk_size=8)
    with pytest.raises(RecipeError, match=r"other.jsonl exists without other.jsonl.progress"):
        map_file(file, count, other, SETTINGS, chunk_size=8)
    assert out.read_bytes() == kept
    out.write_bytes(kept[:50])
    with pytest.raises(RecipeError, match="has 50 bytes of the 542 that were written"):
        map_file(file, count, out, SETTINGS, chunk_size=8)
    with pytest.raises(RecipeError, match="out: .*nowhere.*: No such file or directory"):
        map_file(file, count, tmp_path / "nowhere" / "out", SETTINGS, chunk_size=8)


def test_a_disk_that_takes_no_more_is_told_and_the_command_goes_on(tmp_path):
    out, file = tmp_path / "out.jsonl", write(tmp_path / "in.jsonl", ROWS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (450, hard))  # bytes of a file; 542 are needed
    try:
        with pytest.raises(
            CheckpointError, match="out.jsonl cannot be written: File too large. It has 16"
        ):
            map_file(file, count, out, SETTINGS, chunk_size=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.stat().st_size == 450  # part of a chunk
    map_file(file, count, out, SETTINGS, chunk_size=4)
    assert lines(out) == COUNTED


def test_two_processes_do_not_write_one_file(tmp_path):
    out, file = tmp_path / "out.jsonl", write(tmp_path / "in.jsonl", ROWS)

    def meddling(examples):
        with pytest.raises(RecipeError, match=r"another process writes .*out.jsonl"):
            map_file(file, count, out, SETTINGS, chunk_size=8)
        return count(examples)

    map_file(file, meddling, out, SETTINGS, chunk_size=8)
    assert lines(out) == COUNTED


def test_an_empty_file_is_told(tmp_path):
    file = write(tmp_path / "in.jsonl", [])
    with pytest.raises(DataError, match=r"in.jsonl: no rows"):
        map_file(file, count, None, SETTINGS, chunk_size=8)


def test_no_more_than_a_chunk_is_read_ahead(tmp_path, capsys):
    os.mkfifo(tmp_path / "in.jsonl")
    reader = [sys.executable, HELPERS / "write_lines.py", tmp_path / "in.jsonl"]
    child = subprocess.Popen(reader, stdin=subprocess.PIPE)
    printed = []

    def watched(examples):
        printed.append(len(examples.rows))
        if len(printed) == 2:
            child.stdin.close()
        return count(examples)

    map_file(tmp_path / "in.jsonl", watched, None, SETTINGS, chunk_size=4)
    child.wait(20)
    assert printed == [4, 4]
    assert capsys.readouterr().out == '{"length": 3}\n' * 8


TABLE_ROWS = [
    {"id": 1, "text": 'a, "b"\nc', "label": "ä"},
    {"id": 2, "text": "", "label": None},
    {"id": 3, "text": "=x\ty", "label": "🙂"},
]


def score(examples):
    """Answer with nested scores, a list, a number and a boolean."""
    return [
        {"found": row["text"][:1], "scores": {"ö": 0.25, "b c": 1e-9}, "labels": ["x"], "ok": True}
        for row in examples.rows
    ]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".TSV", "\t")])
def test_a_table_reads_back_as_it_was_answered(tmp_path, suffix, delimiter):
    file, out = write(tmp_path / "in.jsonl", TABLE_ROWS), tmp_path / f"out{suffix}"
    map_file(file, score, out, SETTINGS, chunk_size=2, keep=["text", "id", "label"])
    with out.open(encoding="utf-8", newline="") as found:
        rows = list(csv.DictReader(found, delimiter=delimiter, strict=True))
    same = {"scores.ö": "0.25", "scores.b c": "1e-09", "labels": '["x"]', "ok": "true"}
    for row, given in zip(rows, TABLE_ROWS, strict=True):
        assert list(row) == ["text", "id", "label", "found", *same]
        asked = {"text": given["text"], "id": str(given["id"]), "label": given["label"] or ""}
        assert row == asked | {"found": given["text"][:1]} | same
    if suffix == ".csv":
        assert [row["text"] for row in read_file(out).rows] == [r["text"] for r in TABLE_ROWS]


def test_kept_columns_come_first_and_in_the_order_asked_for(tmp_path):
    file, out = write(tmp_path / "in.jsonl", TABLE_ROWS), tmp_path / "out.jsonl"
    map_file(file, count, out, SETTINGS, chunk_size=2, keep=["label", "id"])
    assert [list(line.items()) for line in lines(out)] == [
        [("label", row["label"]), ("id", row["id"]), ("length", len(row["text"]))]
        for row in TABLE_ROWS
    ]
    with pytest.raises(RecipeError, match="begun with keep .'label', 'id'., not None"):
        map_file(file, count, out, SETTINGS, chunk_size=2)


@pytest.mark.parametrize(
    ("keep", "answers", "message"),
    [
        (["txt", "id"], count, "keep: 'txt' is not a column. Columns: id, text, label."),
        (["id", "found"], score, "keep: 'found' is also a column of the results: found, scores"),
        (["scores.ö"], score, "keep: 'scores.ö' is also a column of the results"),
    ],
)
def test_columns_that_cannot_be_kept_are_told_after_one_row(tmp_path, keep, answers, message):
    rows = [row | ({} if "txt" in keep else dict.fromkeys(keep, 0)) for row in TABLE_ROWS]
    seen = []

    def watched(examples):
        seen.extend(examples.rows)
        return answers(examples)

    file = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(RecipeError, match=re.escape(message)):
        map_file(file, watched, tmp_path / "out.csv", SETTINGS, chunk_size=8, keep=keep)
    assert len(seen) < 2


def test_a_killed_table_is_finished_with_one_header(tmp_path):
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    file = write(tmp_path / "in.jsonl", ROWS)
    map_file(file, count, whole, SETTINGS, chunk_size=4)

    def dying(examples):
        if examples.lines[0] > 8:
            raise KeyboardInterrupt
        return count(examples)

    with pytest.raises(KeyboardInterrupt):
        map_file(file, dying, out, SETTINGS, chunk_size=4)
    with out.open("ab") as more:
        more.write(b'8,"half a')
    map_file(file, count, out, SETTINGS, chunk_size=4)
    assert out.read_bytes() == whole.read_bytes()
    assert out.read_text(encoding="utf-8").splitlines()[:3] == ["id,length", "0,0", "1,1"]
    write(file, [*ROWS, {"id": 9, "text": ""}])
    with pytest.raises(DataError, match="a row has extra, which the header of --out does not have"):
        map_file(file, lambda e: [{"extra": 1} for _ in e.rows], out, SETTINGS, chunk_size=4)


LABELS = ["☹️ sad, very", "ünhappy"]


@pytest.mark.parametrize(
    "terminal",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    ids=["ascii", "C"],
)
def test_an_ascii_terminal_gets_escapes_and_files_utf8(tmp_path, terminal):
    rows = [{"id": label, "text": "a"} for label in LABELS]
    write(tmp_path / "in.jsonl", rows)
    done = subprocess.run(
        [sys.executable, HELPERS / "answer_in_ascii.py", ascii(LABELS[1])],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | terminal | {"COLUMNS": "40", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert done.returncode == 3, done.stderr.decode()
    escaped, *found, again = done.stdout.decode("ascii").splitlines()
    message = done.stderr.decode("ascii").splitlines()[-1]
    assert escaped == again == message == "\\xfcnhappy"
    assert [json.loads(line)["label"] for line in found] == LABELS
    text = (tmp_path / "out.csv").read_text(encoding="utf-8")
    assert [line.rpartition(",")[2] for line in text.splitlines()[2:]] == [LABELS[1]]
    assert [line["label"] for line in lines(tmp_path / "out.jsonl")] == LABELS


def test_a_script_is_quiet_and_its_logging_stays_as_it_was(results):
    command = [sys.executable, HELPERS / "predict_quietly.py", results / "text_classification"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
