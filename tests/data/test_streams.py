"""Streams: places in files, lanes that share the shards, mixtures, and cursors that go on."""

import csv
import gzip
import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice, pairwise

import psutil
import pyarrow as pa
import pytest
from datasets import load_dataset
from pyarrow import ipc
from pyarrow import parquet as pq

from pipelines.data.lanes import Cursor, num_sharing
from pipelines.data.load import load_splits
from pipelines.data.local_files import split_files
from pipelines.data.readers import read_from, read_records
from pipelines.data.rows import Place
from pipelines.data.shards import FileShard, HubShard, Part
from pipelines.data.source import DatasetSource, MixedSource
from pipelines.data.splits import check_splits
from pipelines.errors import DataError, RecipeError
from pipelines.recipe.python_source import names_in
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.tasks.causal_lm import CausalLM

ROWS = [
    {"id": str(n), "text": "line\n" * (n % 3) + f'row {n} "said", é' * (n % 4 + 1)}
    for n in range(3000)
]


def write_jsonl(file):
    lines = (json.dumps(row, ensure_ascii=False) for row in ROWS)
    ends = ("\n", "\r\n", "\n\n")
    file.write_text("\ufeff" + "".join(line + ends[n % 3] for n, line in enumerate(lines)))


def write_csv(file):
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(ROWS[0])
        writer.writerows(row.values() for row in ROWS)


def write_csv_with_stray_quotes(file):
    write_csv(file)
    lines = file.read_text().split("\n")
    lines[1200], lines[3500] = '7,"open ' + lines[1200], '8,"open ' + lines[3500]
    file.write_text("\n".join(lines))


def write_arrow(file):
    table = pa.Table.from_pylist(ROWS)
    with ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=400)


FORMATS = {
    "a.jsonl": write_jsonl,
    "utf16.jsonl": lambda file: file.write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-16"
    ),
    "a.csv": write_csv,
    "stray.csv": write_csv_with_stray_quotes,
    "a.parquet": lambda file: pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=700),
    "a.arrow": write_arrow,
}


@pytest.mark.parametrize("name", FORMATS)
def test_reading_begins_again_at_every_place_of_a_file(name, tmp_path):
    file = tmp_path / name
    FORMATS[name](file)
    whole, num_read, places = list(read_records(file)), 0, []
    for item in read_from(file):
        if isinstance(item, Place):
            places.append((item, num_read))
        else:
            num_read += 1
    assert len(places) >= 2
    for place, num_before in places:
        assert place.row <= num_before
        again = [each for each in read_from(file, place) if not isinstance(each, Place)]
        assert len(again) == len(whole) - place.row
        assert again[num_before - place.row :] == whole[num_before:]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "rows.json"])
def test_compressed_files_and_documents_of_json_are_read_from_their_begin(name, tmp_path):
    text = json.dumps(ROWS) if name == "rows.json" else "".join(map("{}\n".format, ["{}"] * 999))
    content = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
    (tmp_path / name).write_bytes(content)
    assert not [each for each in read_from(tmp_path / name) if isinstance(each, Place)]


# Lanes


def write_shards(folder, sizes, name="train"):
    """Write shards with so many rows, whose texts name shard and row."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, size in enumerate(sizes):
        lines = (json.dumps({"text": f"{shard}.{row}"}) + "\n" for row in range(size))
        (folder / f"{name}-{shard:05d}.jsonl").write_text("".join(lines))
    return folder


def lanes_of(path, num_lanes=1, seed=0, chunk_size=4, **options):
    """Return the lanes of a stream, scored on rows of another split unless told otherwise."""
    source = DatasetSource(path=str(path), streaming=True, **{"max_eval_rows": 1, **options})
    splits, _ = check_splits(CausalLM(dataset=source), load_splits(source))
    return splits.train.rows.lanes(num_lanes, seed, chunk_size)


def texts_of(lanes, lane, cursor=None):
    """Yield the texts of a lane."""
    for chunk in lanes.chunks(lane, cursor or Cursor.start(len(lanes.parts))):
        yield from (row["text"] for _, row in chunk.rows)


def rows_of_pass(lanes, lane, number):
    """Return the texts that a lane reads in a pass, by the turns in which they are read."""
    num_turns = len(lanes.parts[0].shards) * num_sharing(
        len(lanes.parts[0].shards), lanes.num_lanes
    )
    assert num_turns % lanes.num_lanes == 0
    turns, texts = num_turns // lanes.num_lanes, []
    chunks = replace(lanes, chunk_size=1).chunks(lane, Cursor.start(1))
    for before, after in pairwise(chunks):
        turn = after.positions[0].turn  # in which the row before was read
        if turn >= (number + 1) * turns:
            return texts
        if turn >= number * turns:
            texts += [row["text"] for _, row in before.rows]
    raise AssertionError


@pytest.mark.parametrize(("num_shards", "num_lanes"), [(4, 1), (4, 2), (4, 4), (3, 2), (1, 3)])
def test_in_a_pass_lanes_read_each_row_once(num_shards, num_lanes, tmp_path):
    lanes = lanes_of(write_shards(tmp_path, [13] * num_shards), num_lanes)
    # The first row of the first shard is scored
    expected = {f"{shard}.{row}" for shard in range(num_shards) for row in range(13)} - {"0.0"}
    for number in range(2):
        texts = [t for lane in range(num_lanes) for t in rows_of_pass(lanes, lane, number)]
        assert len(texts) == len(expected)
        assert set(texts) == expected


def test_lanes_read_shards_of_their_own_where_these_can_be_shared_evenly(tmp_path):
    lanes = lanes_of(write_shards(tmp_path, [5] * 4), 2, max_eval_rows=1)
    first, second = (
        {text.split(".")[0] for text in islice(texts_of(lanes, lane), 9)} for lane in (0, 1)
    )
    assert len(first) == len(second) == 2
    assert not first & second


@pytest.mark.parametrize(
    ("num_shards", "num_lanes", "readers"),
    # 12 is the least common multiple of 4 and 6. From 16 shards for a lane on, none is shared.
    [(4, 2, 1), (4, 6, 3), (1, 4, 4), (3, 2, 2), (33, 2, 1), (31, 2, 2)],
)
def test_lanes_share_shards_where_there_are_too_few(num_shards, num_lanes, readers):
    assert num_sharing(num_shards, num_lanes) == readers


def test_each_pass_and_each_seed_has_another_order_of_shards(tmp_path):
    folder = write_shards(tmp_path, [2] * 8)
    orders = []
    for seed in (0, 1):
        texts = islice(texts_of(lanes_of(folder, seed=seed, chunk_size=1), 0), 30)
        shards = [text.split(".")[0] for text in texts]
        orders += [list(dict.fromkeys(shards[:15])), list(dict.fromkeys(shards[15:]))]
    assert all(sorted(order) == sorted(map(str, range(8))) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_the_rows_of_a_chunk_are_permuted_with_a_shuffle_buffer(tmp_path):
    folder = write_shards(tmp_path, [50])
    plain = list(islice(texts_of(lanes_of(folder), 0), 49))
    shuffled = list(islice(texts_of(lanes_of(folder, shuffle_buffer_size=10), 0), 40))
    assert plain == [f"0.{row}" for row in range(1, 50)]
    assert shuffled != plain[:40]
    for start in range(0, 40, 10):
        assert sorted(shuffled[start : start + 10]) == sorted(plain[start : start + 10])


def test_scored_rows_over_several_shards_are_not_trained_on(tmp_path):
    folder = write_shards(tmp_path, [3, 4, 5])
    source = DatasetSource(path=str(folder), streaming=True, max_eval_rows=5, max_train_rows=4)
    splits, _ = check_splits(CausalLM(dataset=source), load_splits(source))
    assert [row["text"] for row in splits.held_out.rows] == ["0.0", "0.1", "0.2", "1.0", "1.1"]
    for num_lanes in (1, 2, 3):
        lanes = splits.train.rows.lanes(num_lanes, 0, 1)
        seen = {t for lane in range(num_lanes) for t in islice(texts_of(lanes, lane), 12)}
        assert seen == {"1.2", "1.3", "2.0", "2.1"}


@pytest.mark.parametrize(
    ("skip", "stop", "expected"),
    [
        (0, None, [0, 1, 2, 3, 4]),
        (2, None, [2, 3, 4]),
        (3, None, [3, 4]),
        (1, 1, [1]),
        (1, 2, [1, 2]),
        (2, 2, [2, 3]),
        (0, 99, [0, 1, 2, 3, 4]),
    ],
)
def test_a_part_is_cut_from_shards_of_three_and_two_rows(skip, stop, expected, tmp_path):
    for shard, rows in enumerate(([0, 1, 2], [3, 4])):
        lines = "".join(json.dumps({"n": n}) + "\n" for n in rows)
        (tmp_path / f"{shard}.jsonl").write_text(lines)
    files = (tmp_path / "0.jsonl", tmp_path / "1.jsonl")
    part = Part.of(tuple(map(FileShard, files)), skip, stop)
    found = [
        row["n"]
        for index in range(len(part.shards))
        for _, (_, row) in (item for item in part.read(index, None) if not isinstance(item, Place))
    ]
    assert found == expected


def test_a_stream_without_rows_to_train_on_is_told(tmp_path):
    folder = write_shards(tmp_path, [3])
    with pytest.raises(DataError, match="no rows are left to train on after the first 3"):
        lanes_of(folder, max_eval_rows=3)


def test_a_stream_of_unusable_rows_ends_after_a_pass(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n' * 120 + "{\n" * 5)
    lanes = lanes_of(tmp_path, max_eval_rows=120, on_bad_row="skip")
    with pytest.raises(DataError, match="train.jsonl: no row of a whole pass can be used"):
        list(islice(texts_of(lanes, 0), 1))


def test_an_unusable_row_is_named_with_its_shard_and_line(tmp_path):
    write_shards(tmp_path, [6, 6])
    with (tmp_path / "train-00001.jsonl").open("a") as out:
        out.write("{\n")
    with pytest.raises(DataError, match=r"train-00001.jsonl:7: not JSON"):
        list(islice(texts_of(lanes_of(tmp_path), 0), 12))


# Mixtures


def mixture(tmp_path, weight, other, **options):
    """Return the lanes of two sources, whose rows begin with their names."""
    for name in ("web", "code"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(50))
        (folder / "train.jsonl").write_text(lines)
    mixed = (MixedSource(path=str(tmp_path / "code"), weight=other),)
    return lanes_of(tmp_path / "web", chunk_size=64, weight=weight, mixed_with=mixed, **options)


def test_rows_are_drawn_by_weight(tmp_path):
    lanes = mixture(tmp_path, 3.0, 1.0)
    drawn = Counter(text.split()[0] for text in islice(texts_of(lanes, 0), 8000))
    # 3/4 of 8,000 is 6,000; the standard deviation is sqrt(8000 * 3/4 * 1/4) = 38.7
    assert abs(drawn["web"] - 6000) < 4 * 38.7
    assert "web 0" not in set(islice(texts_of(lanes, 0), 400))


def test_a_source_that_ends_begins_again(tmp_path):
    texts = list(islice(texts_of(mixture(tmp_path, 1.0, 1.0), 0), 400))
    code = [text for text in texts if text.startswith("code")]
    assert code[:100] == [f"code {n % 50}" for n in range(100)]


# Blocks and cursors


def packed(path, tokenizer, packing="wrapped", **options):
    """Return the packed stream of a source."""
    source = DatasetSource(path=str(path), streaming=True, **{"max_eval_rows": 2, **options})
    task = CausalLM(dataset=source, block_size=16, packing=packing)
    splits, labels = check_splits(task, load_splits(source))
    return task.features(splits.train, tokenizer, labels, training=True).dataset


def ids_of(block):
    return list(map(int, block.row["input_ids"]))


@pytest.mark.parametrize("packing", ["wrapped", "bfd_split"])
@pytest.mark.parametrize("options", [{}, {"shuffle_buffer_size": 30}], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_blocks_go_on_after_every_cursor(packing, options, mixed, tokenizer, tmp_path):
    for name in ("web", "code"):
        folder = tmp_path / name
        folder.mkdir()
        for shard in range(2):
            rows = ({"text": f"{name} {shard} " + "word " * (n * n % 23)} for n in range(70))
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"train-{shard}.jsonl").write_text(lines)
    if mixed:
        other = MixedSource(path=str(tmp_path / "code"), weight=1.0)
        options = {**options, "weight": 1.0, "mixed_with": (other,)}
    stream = packed(tmp_path / "web", tokenizer, packing, **options)
    lanes = stream.lanes(2, 0)
    start = Cursor.start(len(lanes.parts))
    whole = list(islice(stream.blocks(lanes, 1, start), 120))
    for at in (0, 1, 17, 58, 99):
        cursor = Cursor.from_json(json.loads(json.dumps(whole[at].cursor.to_json())))
        again = list(islice(stream.blocks(lanes, 1, cursor), 20))
        assert list(map(ids_of, again)) == list(map(ids_of, whole[at + 1 : at + 21]))
        assert [each.cursor for each in again] == [each.cursor for each in whole[at + 1 : at + 21]]


def test_a_cursor_counts_the_tokens_of_its_documents(tokenizer, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n' * 40)
    stream = packed(tmp_path, tokenizer)
    num_tokens = len(tokenizer("a")["input_ids"]) + 1  # with EOS
    lanes = stream.lanes(1, 0)
    for number, block in enumerate(islice(stream.blocks(lanes, 0, Cursor.start(1)), 4), start=1):
        # Blocks overlap by a token, and begin with an EOS: 16 + 15 + 15 ... - 1 tokens
        num_rows = -(-15 * number // num_tokens)
        assert block.cursor.num_rows == (num_rows,)
        assert block.cursor.num_tokens == (num_rows * num_tokens,)


def test_a_resume_at_nine_tenths_reads_little_again(tokenizer, tmp_path):
    file = tmp_path / "train.jsonl"
    lines = (json.dumps({"text": f"{n} " + "word " * 400}) + "\n" for n in range(8000))
    file.write_text("".join(lines))
    stream = packed(tmp_path, tokenizer)
    lanes = stream.lanes(1, 0)
    chunks = lanes.chunks(0, Cursor.start(1))
    chunk = next(each for each in chunks if each.number * lanes.chunk_size >= 7200)
    cursor = Cursor(chunk.positions, chunk.number, 5, 3, (0,), (0,))
    before = psutil.Process().io_counters().read_chars
    block = next(stream.blocks(lanes, 0, cursor))
    read = psutil.Process().io_counters().read_chars - before
    assert block.cursor.used >= 5
    # At most 256 lines from a place to the next and a chunk of 64, of 8,000: 4 %; and a buffer of
    # 64 KB of 16 MB at the begin of the file, by which its format is known
    assert read < 0.05 * file.stat().st_size


def test_shards_of_the_hub_are_read_from_their_places(tmp_path):
    for shard in range(2):
        table = pa.table({"text": [f"{shard}.{row}" for row in range(2500)]})
        file = tmp_path / f"train-{shard:05d}-of-00002.parquet"
        pq.write_table(table, file, row_group_size=300)
    dataset = load_dataset(str(tmp_path), split="train", streaming=True)
    shard = HubShard(dataset, 1, "user/data train")
    items = list(shard.read())
    places = [item for item in items if isinstance(item, Place)]
    assert [(place.row, place.number) for place in places] == [(1000, 1000), (2000, 2000)]
    place = Place(**json.loads(json.dumps(asdict(places[1]))))
    rows = [item for item in shard.read(place) if not isinstance(item, Place)]
    assert rows == [(number, {"text": f"1.{number}"}) for number in range(2000, 2500)]
    assert shard.name == "user/data train shard 1"
    assert Part.of((HubShard(dataset, 0, ""), shard), 2501, None) == Part((shard,), 1)


# Patterns and options


def test_a_pattern_names_files_of_any_folder(tmp_path):
    for name in ("b/x.jsonl", "a/y.jsonl", "a/README.md"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text('{"text": "a"}\n')
    source = DatasetSource(path=str(tmp_path / "*" / "*"))
    names = [str(file.relative_to(tmp_path)) for file in split_files(source, "train")]
    assert names == ["a/y.jsonl", "b/x.jsonl"]
    with pytest.raises(DataError, match="no file with this pattern has rows"):
        split_files(DatasetSource(path=str(tmp_path / "*.csv")), "train")


OTHER = MixedSource(path="b", weight=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_lanes": 2}, "num_lanes: is for a stream"),
        ({"shuffle_buffer_size": 9}, "shuffle_buffer_size: is for a stream"),
        ({"mixed_with": (OTHER,), "weight": 1.0}, "mixed_with: is for a stream"),
        ({"streaming": True, "weight": 1.0}, "weight: there is nothing to weigh it against"),
        ({"streaming": True, "mixed_with": (OTHER,)}, "weight: is missing"),
        ({"streaming": True, "mixed_with": (), "weight": 1.0}, "mixed_with: names no source"),
        (
            {"streaming": True, "mixed_with": (OTHER, OTHER), "weight": 1.0},
            r"mixed_with.1.path: b is task.dataset.mixed_with.0, too",
        ),
        (
            {"streaming": True, "mixed_with": (replace(OTHER, path="a"),), "weight": 1.0},
            r"mixed_with.0.path: a is the source itself",
        ),
        (
            {"streaming": True, "mixed_with": (replace(OTHER, weight=0.0),), "weight": 1.0},
            r"mixed_with.0.weight: 0.0 is out of range; it must be above 0",
        ),
    ],
)
def test_options_that_make_no_mixture_are_told(options, message):
    source = DatasetSource(path="a", max_eval_rows=4, **options)
    with pytest.raises(RecipeError, match=message):
        recipe_of(source)


def recipe_of(source):
    return Recipe(
        name="mixed",
        task=CausalLM(dataset=source),
        model=Model(name_or_path="m"),
        train=Train(max_steps=2),
    )


def test_a_mixture_goes_through_json_and_tells_what_is_wrong_in_it():
    others = (OTHER, replace(OTHER, path="c", revision="main", weight=0.5))
    source = DatasetSource(path="a", streaming=True, max_eval_rows=4, weight=2.0, mixed_with=others)
    recipe = recipe_of(source)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert "MixedSource" in names_in(recipe)
    with pytest.raises(RecipeError, match=r"task.dataset.mixed_with.1.wight: unknown; did you"):
        Recipe.from_json(recipe.to_json().replace('"weight": 0.5', '"wight": 0.5'))
