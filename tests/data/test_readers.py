"""Rows are read whatever file holds them, and what cannot be read is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.data.load import load_split, load_splits, read_file
from pipelines.data.local_files import is_local, split_files
from pipelines.data.readers import describe_format, read_records
from pipelines.data.rows import Unreadable
from pipelines.data.source import DatasetSource
from pipelines.data.splits import check_splits
from pipelines.errors import DataError
from pipelines.tasks.causal_lm import CausalLM

SLOW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ROWS = [{"text": f"ticket {n}, please", "label": ("x", "y")[n % 2]} for n in range(8)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def rows_of(file: Path) -> list:
    """Return the rows of a file that has no unreadable line."""
    found = [row for _, row in read_records(file)]
    assert not [row for row in found if isinstance(row, Unreadable)]
    return found


def parts_of(file: Path) -> tuple[list, dict]:
    """Return the rows of a file, and what was lost, by line."""
    rows, lost = [], {}
    for number, row in read_records(file):
        if isinstance(row, Unreadable):
            assert number not in lost
            lost[number] = row
        else:
            rows.append(row)
    return rows, lost


def as_csv(rows: list, **dialect) -> str:
    """Return rows as csv writes them, of the columns of the first."""
    text = io.StringIO()
    writer = csv.writer(text, **dialect)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue()


def zstd(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


# JSON

JSON_FORMS = {
    "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "lines that end in CR": lambda rows: "".join(json.dumps(row) + "\r" for row in rows),
    "an array": json.dumps,
    "a pretty array": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False),
    "an array, a row a line": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "objects, pretty": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
    "an object with data": lambda rows: json.dumps({"version": "1", "data": rows}),
}
MORE_FORMS = {
    "an object with another key": lambda rows: json.dumps({"tickets": rows}, indent=1),
    "an object with known and unknown keys": lambda rows: json.dumps({"x": 1, "rows": rows}),
    "columns": lambda rows: json.dumps({key: [row[key] for row in rows] for key in rows[0]}),
    "columns by index": lambda rows: json.dumps(
        {key: {str(i): row[key] for i, row in enumerate(rows)} for key in rows[0]}
    ),
    "rows by index": lambda rows: json.dumps({str(i): row for i, row in enumerate(rows)}),
    "a split table": lambda rows: json.dumps(
        {"columns": [*rows[0]], "index": [0] * len(rows), "data": [[*r.values()] for r in rows]}
    ),
}
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSON", ".csv", ".dat", ""])
@pytest.mark.parametrize("form", JSON_FORMS)
def test_json_is_read_in_any_form_under_any_suffix(form, suffix, tmp_path):
    file = tmp_path / f"rows{suffix}"
    file.write_text(JSON_FORMS[form](ROWS), encoding="utf-8-sig", newline="")
    assert rows_of(file) == ROWS


@pytest.mark.parametrize("form", MORE_FORMS)
def test_json_objects_that_hold_rows_are_read(form, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(MORE_FORMS[form](ROWS))
    assert rows_of(file) == ROWS


@SLOW
@given(
    st.lists(st.fixed_dictionaries({"text": CELL, "label": CELL}), min_size=1, max_size=4),
    st.sampled_from(sorted(JSON_FORMS)),
    st.booleans(),
)
def test_any_rows_come_back_from_any_json(tmp_path, rows, form, as_lines):
    file = tmp_path / ("rows.jsonl" if as_lines else "rows.json")
    file.write_text(JSON_FORMS[form](rows), encoding="utf-8", newline="")
    assert rows_of(file) == rows


def test_an_object_that_is_one_row_stays_one(tmp_path):
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    question = {"id": "1", "question": "?", "answers": [{"text": "a", "answer_start": 0}]}
    tokens = {"tokens": ["a", "b"], "tags": [0, 1]}
    for row in (chat, question, tokens, {"data": [{"a": 1}], "text": "b"}):
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(row))
        assert rows_of(file) == [row]
    for row in (chat, question, {"text": "a"}):
        (tmp_path / "row.json").write_text(json.dumps(row, indent=2))
        assert rows_of(tmp_path / "row.json") == [row]


def test_an_object_of_several_lists_of_rows_is_ambiguous(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(DataError, match="'train', 'test' each hold rows. Write each to its own"):
        list(read_records(file))


def test_squad_is_read_nested_or_flat(tmp_path):
    answers = [{"text": "ticket", "answer_start": 2}]
    row = {"id": "1", "question": "What?", "context": "a ticket"}
    row["answers"] = {"text": ["ticket"], "answer_start": [2]}
    question = {"id": "1", "question": "What?", "answers": answers}
    paragraph = {"context": "a ticket", "qas": [question]}
    article = {"title": "t", "paragraphs": [paragraph]}
    for document in (
        {"version": "v2", "data": [article]},
        {"data": [row]},
        [row],
        [article],
        [paragraph],
    ):
        for indent in (None, 1):
            (tmp_path / "a.json").write_text(json.dumps(document, indent=indent))
            assert rows_of(tmp_path / "a.json") == [row]


def test_nested_squad_keeps_that_a_question_has_no_answer(tmp_path):
    question = {"id": "1", "question": "What?", "answers": None, "is_impossible": True}
    document = {"data": [{"paragraphs": [{"context": "a ticket", "qas": [question]}]}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    [row] = rows_of(tmp_path / "a.json")
    assert row["answers"] == {"text": [], "answer_start": []}
    assert row["is_impossible"] is True


def test_a_bad_item_of_an_array_loses_that_item_only(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(r'[{"text": "a"}, {"text": "a\u0000"}, 3, {"a": 1, "a": 2}, {"text": "b"}]')
    rows, lost = parts_of(file)
    assert rows == [{"text": "a"}, {"text": "b"}]
    reasons = [row.reason for row in lost.values()]
    assert [*lost] == [2, 3, 4]
    assert reasons == ["a NUL character.", "'3' is not an object.", "key 'a' is duplicated."]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_document_that_is_broken_names_the_line(suffix, tmp_path):
    file = tmp_path / f"rows{suffix}"
    file.write_text('[\n {"text": "a"},\n {"text": "b"},\n]\n')
    with pytest.raises(DataError, match=rf"rows{suffix}:[34]: not JSON: .* in column"):
        list(read_records(file))


def test_a_first_line_that_is_damaged_does_not_hide_json_lines(tmp_path):
    for first in ('{"text": "cut', "[1,", "["):
        for suffix in (".json", ".jsonl"):
            file = tmp_path / f"rows{suffix}"
            file.write_text(f"{first}\n{LINES}")
            rows, lost = parts_of(file)
            assert rows == ROWS
            assert [*lost] == [1]


# Delimited text


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV", ".dat", ".jsonl"])
def test_delimiters_are_found_whatever_the_suffix(delimiter, suffix, tmp_path):
    file = tmp_path / f"rows{suffix}"
    file.write_text(as_csv(ROWS, delimiter=delimiter), newline="")
    assert rows_of(file) == ROWS


def test_the_detected_format_is_described_as(tmp_path):
    def described_as(name: str, content: bytes) -> str | None:
        file = tmp_path / name
        file.write_bytes(content)
        text = describe_format(file)
        return None if text is None else text.removeprefix(f"{file}: read as ")

    comma, semicolon = (as_csv(ROWS, delimiter=mark).encode() for mark in ",;")
    assert described_as("a.csv", comma) is None
    assert described_as("a.csv.gz", gzip.compress(comma)) is None
    assert described_as("a.jsonl", LINES.encode()) is None
    assert described_as("a.csv", semicolon) == "semicolon-separated"
    assert described_as("b.csv", gzip.compress(semicolon)) == ("gzip, semicolon-separated")
    assert described_as("a.csv", semicolon.decode().encode("utf-16")) == (
        "UTF-16, semicolon-separated"
    )
    assert described_as("b.jsonl", json.dumps(ROWS).encode()) == "a JSON array"
    assert described_as("a.json", LINES.encode()) == "JSON lines"
    assert described_as("a.json", json.dumps({"rows": ROWS}).encode()) == (
        "a JSON object with rows in 'rows'"
    )
    assert described_as("a.dat", comma) == "delimited text, comma-separated"
    assert described_as("a.txt", LINES.encode()) == "plain text, though it looks like JSON lines"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("value;label\n1,5;pos\n2,5;neg\n", [("1,5", "pos"), ("2,5", "neg")]),
        ("value,label\n1;5,pos\n2;5,neg\n", [("1;5", "pos"), ("2;5", "neg")]),
        ('"a, b";label\n1,2;x\n"3,4;5";y\n', [("1,2", "x"), ("3,4;5", "y")]),
        ("sep=;\ntext;label\na, b;x\n", [("a, b", "x")]),
        ('text, label\n"a, b", x\nc, y\n', [("a, b", "x"), ("c", "y")]),
        ('text,label\n"say \\"hi\\", ok",x\nb,y\n', [('say "hi", ok', "x"), ("b", "y")]),
        (
            'text\tlabel\n"hi" he said\tx\n24"\ty\n"a\tz\n',
            [('"hi" he said', "x"), ('24"', "y"), ('"a', "z")],
        ),
        ("text,label\ra,x\rb,y\r", [("a", "x"), ("b", "y")]),
        ("text,label\r\na,x\nb,y\r", [("a", "x"), ("b", "y")]),
        ("\n\ntext,label\na,x\n", [("a", "x")]),
        (f"text,label\n{'a' * 300_000},x\n", [("a" * 300_000, "x")]),
        ("text\na;b\nc\n", [("a;b",), ("c",)]),
        ("text; raw\nab\nc\n", [("ab",), ("c",)]),
    ],
)
def test_the_dialect_is_the_one_in_which_records_agree(text, rows, tmp_path):
    (tmp_path / "rows.csv").write_text(text, newline="")
    assert [tuple(row.values()) for row in rows_of(tmp_path / "rows.csv")] == rows


def test_columns_and_rows_that_a_spreadsheet_leaves_empty_are_dropped(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,,label,,\na,,x,,\nb,,y\n,,,,\nc,,x,oops,\n,,z,,\nd,,y,,,\n,,,,\n,,,,\n")
    rows, lost = parts_of(file)
    assert rows == [
        {"text": "a", "label": "x"},
        {"text": "b", "label": "y"},
        {"text": "", "label": ""},
        {"text": "", "label": "z"},
        {"text": "d", "label": "y"},
    ]
    assert lost[5].reason == "cell 4 holds 'oops', but the header has no name for it."
    file.write_text(",text,label\n0,a,x\n1,b,y\n")  # as pandas writes its index
    assert rows_of(file)[1] == {"": "1", "text": "b", "label": "y"}
    file.write_text(",,\na,b,c\n")
    with pytest.raises(DataError, match="rows.csv:1: the header has no column names"):
        list(read_records(file))


BACKGROUND = [
    {"text": f"ticket {n} of a customer", "label": ("positive", "negative")[n % 2]}
    for n in range(12)
]
CONTAINERS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@SLOW
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "text": st.text("ab é,;\t|\"'\n", max_size=12),
                "label": st.sampled_from(["positive", "negative"]),
            }
        ),
        max_size=6,
    ),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from(sorted(CONTAINERS)),
    st.booleans(),
)
def test_any_cells_come_back_from_any_delimited_file(
    tmp_path, rows, delimiter, quoting, end, encoding, container, label_first
):
    names = ("label", "text") if label_first else ("text", "label")
    rows = [{name: row[name] for name in names} for row in [*BACKGROUND, *rows, *BACKGROUND]]
    text = as_csv(rows, delimiter=delimiter, quoting=quoting, lineterminator=end)
    if end == "\r" and quoting == csv.QUOTE_MINIMAL:
        text = as_csv(rows, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator=end)
    file = tmp_path / f"rows.csv{container}"
    file.write_bytes(CONTAINERS[container](text.encode(encoding)))
    assert rows_of(file) == rows


LETTERS = [
    "Dear John,\nI write to you, my friend, with thanks.\nBye, Tom",
    "Dear John,\n\nthanks,\nbye",
    "12 High Street, Leeds\nLS1 4AB, UK",
    "def f(a,b):\n    return a,b\n\nprint(f(1,2))",
    "for a,b in c:\n    d[a,b] = 1,2",
    "id,name\n1,Ann\n2,Bob",
    'text,label\n"a ""b"" c",pos\nd,neg',
    "a,b,c\n1,2,3\n4,5,6",
    'She said "no",\nthen "yes", and left',
    "Zeile 1;2\nZeile 3;4",
    "one line",
    "\n",
    "costs 1,000 a month\nand 2,000 a year",
]


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("label_first", [False, True])
@pytest.mark.parametrize("copies", [1, 20])
def test_cells_with_line_breaks_are_no_false_alarm(delimiter, label_first, copies, tmp_path):
    rows = [{"text": text, "label": label} for label in ("pos", "neg") for text in LETTERS]
    if label_first:
        rows = [{"label": row["label"], "text": row["text"]} for row in rows]
    for chosen in (rows * copies, rows[:1] * copies, rows[3:5] * copies, rows[6:7] * copies):
        file = tmp_path / "rows.csv"
        file.write_text(as_csv(chosen, delimiter=delimiter), newline="")
        assert rows_of(file) == chosen


def test_cells_with_line_breaks_in_free_text_columns_are_no_false_alarm(tmp_path):
    answers = ["Sure, I will, at once.", "No, never.", "Line one,\nline two, and\nthree."]
    rows = [{"prompt": a, "completion": b} for a in LETTERS for b in answers]
    rows += [{"prompt": f"Ticket {n}", "completion": "Fine."} for n in range(20)]
    (tmp_path / "rows.csv").write_text(as_csv(rows), newline="")
    assert rows_of(tmp_path / "rows.csv") == rows


STRAY = """text,label
bad lamp,neg
good refund,pos
"24 inch monitor good order,pos
bad parcel lamp,neg
good shelf desk,pos
the monitor is 24",pos
bad heavy lamp,neg
"""


def test_a_stray_quote_loses_only_its_line(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(STRAY)
    rows, lost = parts_of(file)
    assert [row["text"] for row in rows] == [
        "bad lamp",
        "good refund",
        "bad parcel lamp",
        "good shelf desk",
        'the monitor is 24"',
        "bad heavy lamp",
    ]
    assert [*lost] == [4]
    assert "a quote opens a cell here that closes in line 7" in lost[4].reason
    with pytest.raises(DataError, match=r"rows.csv:4: a quote opens"):
        read_file(file)


@pytest.mark.parametrize(
    ("text", "num_rows", "lost"),
    [
        ('text,label\na,x\n"b,y\nc,x\n', 2, [3]),
        ('text,label\n"b,y\nc,x\nd,y\n', 2, [2]),
        ('text,label\na,x\n"a"b,x\nc,y\n', 2, [3]),
        ('text,label\na,x\n"b,y\n"c, d",x\n', 2, [3]),
        ('text,label\na,x\n"b,y\n"two\nlines",x\nd,y\n', 3, [3]),
        ('label,text\nx,a\nx,"b\ny,c\nx,d" e\ny,f\n', 4, [3]),
        ('text,label\nab cd,x\nab,y\n"Dear John,\nmany thanks, bye\n', 2, [4, 5]),
        ('text,label\nab,x\n"the 24" screen\nis broken",y\ncd,y\n', 2, [3, 4]),
        ('text\na\n"b\nc\n', 2, [3]),
    ],
)
def test_a_bad_quote_loses_only_the_lines_that_it_breaks(text, num_rows, lost, tmp_path):
    (tmp_path / "rows.csv").write_text(text)
    rows, found = parts_of(tmp_path / "rows.csv")
    assert len(rows) == num_rows
    assert [*found] == lost
    assert not any("\n" in value and "two" not in value for row in rows for value in row.values())


WORDS = st.lists(
    st.sampled_from(["lamp", "desk", "refund", "old", "17", "late"]), min_size=1, max_size=6
)


@SLOW
@given(
    st.lists(st.tuples(WORDS.map(" ".join), st.sampled_from(["pos", "neg"])), min_size=6),
    st.data(),
    st.sampled_from([",", ";", "\t"]),
    st.booleans(),
)
def test_no_stray_quote_merges_rows(tmp_path, pairs, data, delimiter, label_first):
    shown = [(f"old refund {word} of 17", ("pos", "neg")[n % 2]) for n, word in enumerate("abcdef")]
    pairs = [*shown, *pairs, *shown]
    texts = [text for text, _ in pairs]
    for _ in range(data.draw(st.integers(1, 3))):
        row = data.draw(st.integers(0, len(pairs) - 1))
        place = data.draw(st.sampled_from(["begin", "middle", "end"]))
        cut = {"begin": 0, "middle": len(texts[row]) // 2, "end": len(texts[row])}[place]
        texts[row] = f'{texts[row][:cut]}"{texts[row][cut:]}'
    lines = [
        delimiter.join((label, text) if label_first else (text, label))
        for text, (_, label) in zip(texts, pairs, strict=True)
    ]
    names = ("label", "text") if label_first else ("text", "label")
    file = tmp_path / "rows.csv"
    file.write_text("\n".join([delimiter.join(names), *lines]) + "\n")
    rows, lost = parts_of(file)
    assert len(rows) + len(lost) == len(lines)
    assert not any("\n" in row["text"] for row in rows)
    assert all(row["label"] in ("pos", "neg") for row in rows)


def test_an_open_quote_is_given_up_without_holding_the_file(tmp_path):
    from pipelines.data.formats.delimited import Records
    from pipelines.data.formats.dialects import sniff
    from pipelines.data.formats.text_stream import TextLines

    lines = ["text,label\n", '"24 inch,pos\n', *(f"ticket {n},neg\n" for n in range(50_000))]
    most = 0
    records = Records(Path("rows.csv"), TextLines(lines), sniff(lines[:100], ","))
    for _, _ in records:
        most = max(most, len(records.lines.given_back))
    assert 0 < most <= 1000


# Columnar files and what is no data


def columnar(rows: list) -> dict[str, bytes]:
    import pyarrow
    from pyarrow import feather, ipc, parquet

    table = pyarrow.Table.from_pylist(rows)
    found = {}
    for name, write in {
        "a.parquet": lambda out: parquet.write_table(table, out, row_group_size=3),
        "a.feather": lambda out: feather.write_feather(table, out),
        "b.arrow": lambda out: ipc.new_file(out, table.schema).write_table(table),
    }.items():
        out = io.BytesIO()
        write(out)
        found[name] = out.getvalue()
    out = io.BytesIO()
    with ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return found | {"a.arrow": out.getvalue(), "a.csv": found["a.parquet"]}


def test_columnar_files_are_read_as_the_same_rows(tmp_path):
    rows = [
        row | {"n": n, "answers": {"text": ["a"], "answer_start": [n]}, "none": None}
        for n, row in enumerate(ROWS)
    ]
    contents = columnar(rows)
    del contents["b.arrow"]  # not closed: no footer
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert rows_of(tmp_path / name) == rows
    assert describe_format(tmp_path / "a.csv").endswith("read as Parquet")
    (tmp_path / "cut.parquet").write_bytes(contents["a.parquet"][:-20])
    with pytest.raises(DataError, match="cut.parquet: damaged Parquet after row 0"):
        rows_of(tmp_path / "cut.parquet")


def test_class_names_of_parquet_are_those_of_the_hub(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = {"text": ["a", "b"], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    for path in (tmp_path, tmp_path / "train.parquet"):
        splits = load_splits(DatasetSource(path=str(path), eval_fraction=0.5))
        assert splits.train.label_names == {"label": ("neg", "pos")}
    assert read_file(tmp_path / "train.parquet").label_names == {"label": ("neg", "pos")}


@pytest.mark.parametrize("names", [["pos", "neg"], ["neg", "pos", "?"], None])
def test_shards_that_name_their_labels_differently_are_refused(names, tmp_path):
    """The ids of one shard would be read by the names of another."""
    import datasets

    text = datasets.Value("string")
    for index, each in enumerate((["neg", "pos"], names)):
        label = datasets.Value("int64") if each is None else datasets.ClassLabel(names=each)
        table = datasets.Dataset.from_dict(
            {"text": ["a", "b"], "label": [0, 1]},
            features=datasets.Features({"text": text, "label": label}),
        )
        table.to_parquet(tmp_path / f"train-0000{index}-of-00002.parquet")
    with pytest.raises(DataError, match="00001-of.*column 'label' are .*, but.*00000-of.*neg, pos"):
        load_split(DatasetSource(path=str(tmp_path)), "train")


def test_a_folder_that_datasets_saved_is_read(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "two")
    one = DatasetSource(path=str(tmp_path / "one"))
    two = DatasetSource(path=str(tmp_path / "two"), eval_split="test")
    assert len(split_files(one, "train")) == 2
    for source in (one, two):
        splits = load_splits(source)
        rows = [*splits.train.rows, *(splits.held_out.rows if splits.held_out else ())]
        assert [row for row in ROWS if row in rows] == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
        (b"%PDF-1.7\n1 0 obj\n", "a PDF document"),
        (b"PK\x03\x04\x14\0\x06\0[Content_Types].xml" + bytes(9) + b"xl/workbook.xml", "an Excel"),
        (b"PK\x03\x04\x14\0\0\0\0\0train.csv", "a zip archive"),
        (b"SQLite format 3\0" + bytes(80), "an SQLite database"),
        (b"\x80\x04\x95\x10\0\0\0", "a pickle"),
        (bytes(range(256)), "a binary file"),
        ("text,label\nsome words,x\nmore words,y\n".encode("utf-16-le"), "UTF-16 without a byte"),
        (gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(100)), "a PNG image"),
        (gzip.compress(gzip.compress(LINES.encode())), "a gzip file"),
        (gzip.compress(LINES.encode())[:-9], "damaged or incomplete compressed data"),
        (zstd(LINES.encode())[:-9], "Truncated compressed stream"),
        (LINES.encode("utf-16")[:-1], "not UTF-16-LE: truncated data"),
        (b"", "no rows"),
        (gzip.compress(b""), "no rows"),
        (b"text,text\na,b\n", "column 'text' is duplicated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_without_rows_is_refused_with_the_reason(content, message, suffix, tmp_path):
    if message == "column 'text' is duplicated" and suffix == ".jsonl":
        content += b"c,d\n"
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{file}.*{message}"):
        read_file(file)


def test_a_text_that_begins_like_a_binary_file_is_a_text(tmp_path):
    for text in ("ORCHIDS are plants.\n" * 3, "RIFF and raff\n", "GIF89a is a format.\n"):
        (tmp_path / "a.txt").write_text(text)
        assert rows_of(tmp_path / "a.txt") == [{"text": text}]


def test_a_lone_surrogate_of_utf_16_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes((LINES + '{"text": "\ud800"}\n').encode("utf-16", "surrogatepass"))
    rows, lost = parts_of(file)
    assert rows == ROWS
    assert lost[9].reason == "half a surrogate pair, U+D800."


# Folders and paths


def test_a_folder_of_text_files_is_a_document_each(tmp_path):
    for name in ("b.txt", "a.TXT", "c.txt.gz", ".hidden.txt"):
        content = name.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if "gz" in name else content)
    source = DatasetSource(path=str(tmp_path), eval_fraction=0.3)
    documents = load_splits(source).train
    assert [row["text"] for row in documents.rows] == ["a.TXT", "b.txt", "c.txt.gz"]
    splits, _ = check_splits(CausalLM(dataset=source), load_splits(source))
    assert {splits.train.locate(0), splits.train.locate(1), splits.held_out.locate(0)} == {
        f"{tmp_path / name}:1" for name in ("a.TXT", "b.txt", "c.txt.gz")
    }
    with pytest.raises(DataError, match="no file for split 'train'"):
        load_splits(DatasetSource(path=str(tmp_path), eval_split="test"))


@pytest.mark.parametrize(
    "names",
    [
        ("train.JSONL.GZ",),
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"),
        (
            "train-00000-of-00002-0123456789abcdef.jsonl",
            "train-00001-of-00002-0123456789abcdef.jsonl",
        ),
        ("train.9.jsonl", "train.10.jsonl"),
        ("train_1.jsonl.gz", "train_2.jsonl.gz"),
        ("train/0000.jsonl", "train/0001.jsonl"),
        ("train/b.jsonl", "train/c.jsonl"),
        ("data/train-00000-of-00001.jsonl",),
        ("part-00000.jsonl", "part-00001.jsonl"),
        ("train.jsonl", "README.md", "test.csv", "train_notes.jsonl", "train-2.csv"),
    ],
)
def test_splits_are_found_by_common_names(names, tmp_path):
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(gzip.compress(LINES.encode()) if "gz" in name.lower() else LINES.encode())
    found = split_files(DatasetSource(path=str(tmp_path)), "train")
    expected = names[:1] if "README.md" in names else names
    assert [str(file.relative_to(tmp_path)) for file in found] == list(expected)


def test_lines_of_shards_are_named_and_skipped_by_file(tmp_path):
    from pipelines.data.splits import check_splits
    from pipelines.data.stream import Stream
    from pipelines.tasks.text_classification import TextClassification

    for index in range(2):
        (tmp_path / f"train-0000{index}-of-00002.jsonl").write_text(LINES + "{\n")
    source = DatasetSource(path=str(tmp_path), on_bad_row="skip", eval_fraction=0.25)
    splits, _ = check_splits(
        TextClassification(dataset=source), load_splits(source), tmp_path / "rejected.txt"
    )
    assert len(splits.train.rows) + len(splits.held_out.rows) == 16
    rejected = [json.loads(line) for line in (tmp_path / "rejected.txt").open()]
    assert sorted((Path(each["file"]).name[:11], each["line"]) for each in rejected) == [
        ("train-00000", 9),
        ("train-00001", 9),
    ]
    stream = Stream(source, "train")
    assert len(list(stream)) == 16
    before = stream.fingerprint()
    with (tmp_path / "train-00001-of-00002.jsonl").open("a") as file:
        file.write("\n")
    assert stream.fingerprint() != before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train.csv", "train.jsonl"), "split 'train' is ambiguous: train.csv and train.jsonl"),
        (("train.csv", "train.csv.gz"), "ambiguous: train.csv and train.csv.gz"),
        (("train.csv", "train/0.csv"), "ambiguous: train.csv and train/0.csv"),
        (("train-00000-of-00003.csv", "train-00002-of-00003.csv"), "2 shards .* names say 3"),
        (("train/a.csv", "train/b.json"), "files of several formats: a.csv, b.json"),
        (("a.csv", "b.csv"), "no file for split 'train' .a.csv, b.csv there.. Accepted: .*parquet"),
    ],
)
def test_ambiguous_files_of_a_split_are_refused(names, message, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\na,x\n")
    with pytest.raises(DataError, match=message):
        load_splits(DatasetSource(path=str(tmp_path)))


def test_a_misspelt_path_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data" / "helpdesk" / "classify").mkdir(parents=True)
    (tmp_path / "data" / "rows.csv").write_text("text,label\na,x\n")
    for path, nearest in [
        ("data/helpdsk", "data/helpdesk"),
        ("data/helpdsk/", "data/helpdesk"),
        ("dta/helpdesk/clasify", "data/helpdesk/classify"),
        ("data/row.csv", "data/rows.csv"),
        ("./data/helpdesks", "data/helpdesk"),
        ("~/dat/helpdesk", f"{tmp_path}/data/helpdesk"),
    ]:
        with pytest.raises(DataError, match=f"no such file or folder. Did you mean {nearest}[?]"):
            is_local(DatasetSource(path=path))
    for path in ("data/helpdesk", "data/helpdesk/", "~/data/helpdesk", "~/data/rows.csv"):
        assert is_local(DatasetSource(path=path))
    with pytest.raises(DataError, match="data/other: .* There is a folder data, .* of the Hub"):
        is_local(DatasetSource(path="data/other"))


def test_a_hub_id_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nyu-mll" / "other").mkdir(parents=True)
    assert not is_local(DatasetSource(path="nyu-mll/glue", name="sst2"))
    assert not is_local(DatasetSource(path="nyu-mll/glue", revision="main"))
    assert not is_local(DatasetSource(path="stanfordnlp/imdb"))
    assert not is_local(DatasetSource(path="squad"))


def test_a_hub_id_that_is_not_found_names_a_local_path(tmp_path, monkeypatch):
    from pipelines.errors import Problem, RecipeError
    from pipelines.hub import pin as hub
    from pipelines.recipe.recipe import Recipe
    from pipelines.recipe.values import Scratch

    def not_found(hub, name, revision, *, kind, path, problems):
        problems.append(Problem(path, f"{name!r} is not a folder, nor a {kind} on the Hub."))

    monkeypatch.setattr(hub, "resolve_commit", not_found)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "helpdesk").mkdir(parents=True)
    task = CausalLM(dataset=DatasetSource(path="dta/helpdesk"))
    with pytest.raises(RecipeError, match="dataset on the Hub.*\n.*did you mean the local data/h"):
        hub.pin_revisions(Recipe(name="a", task=task, model=Scratch()))


def test_what_a_run_detected_is_in_its_report(tmp_path):
    from pipelines.data.load import describe_formats

    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(as_csv(ROWS, delimiter=";"))
    lines = list(describe_formats(DatasetSource(path=str(tmp_path), eval_split="test")))
    assert lines == [
        f"{tmp_path / split}.csv: read as semicolon-separated" for split in ("train", "test")
    ]
    assert not list(describe_formats(DatasetSource(path="squad")))
