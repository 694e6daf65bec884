"""Batches of streams: processes, workers and resumes see the blocks that one process would."""

import json
import subprocess
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest

from helpers.callbacks import SignalAt
from helpers.factories import ROOT
from helpers.resumable_runs import TRAIN, recipe_for, script_for, weights
from pipelines.data.load import load_splits
from pipelines.data.source import DatasetSource, MixedSource
from pipelines.data.splits import check_splits
from pipelines.errors import DataError, Preempted, RecipeError
from pipelines.flow import run
from pipelines.tasks.causal_lm import CausalLM
from pipelines.training.stream_batches import BLOCKS, StreamBatches, check_lanes

BATCH = 2  # rows of a process


@pytest.fixture
def shards(tmp_path):
    """A folder with four shards of unequal lengths."""
    for shard, size in enumerate((30, 25, 41, 36)):
        rows = ({"text": f"{shard} {row} " + "word " * (row % 9)} for row in range(size))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"train-{shard:05d}-of-00004.jsonl").write_text(lines)
    return tmp_path


def batches_of(folder, tokenizer, rank=0, world_size=1, num_workers=0, **options):
    """Return the batches of a process."""
    source = DatasetSource(path=str(folder), streaming=True, max_eval_rows=3, **options)
    task = CausalLM(dataset=source, block_size=16)
    splits, labels = check_splits(task, load_splits(source))
    stream = task.features(splits.train, tokenizer, labels, training=True).dataset
    arguments = SimpleNamespace(
        process_index=rank,
        should_save=rank == 0,
        world_size=world_size,
        dataloader_num_workers=num_workers,
        seed=3,
        train_batch_size=BATCH,
        gradient_accumulation_steps=1,
    )
    return StreamBatches(stream, arguments, lambda rows: {"input_ids": rows})


def take(batches, count):
    """Return the blocks of the next batches, as a training does."""
    taken = []
    for batch in islice(batches, count):
        batches.trained_on(batch[BLOCKS])
        taken += [list(map(int, row["input_ids"])) for row in batch["input_ids"]]
    return taken


def steps_of(folder, tokenizer, world_size, num_steps, num_workers=0, **options):
    """Return the blocks of each step of 8 rows on all processes together, in any order."""
    each = 8 // (BATCH * world_size)
    ranks = [
        batches_of(folder, tokenizer, rank, world_size, num_workers, **options)
        for rank in range(world_size)
    ]
    taken = [take(batches, num_steps * each) for batches in ranks]
    size = 8 // world_size
    return [
        sorted(row for rows in taken for row in rows[step * size : (step + 1) * size])
        for step in range(num_steps)
    ]


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (4, 0), (1, 2), (2, 2)])
def test_lanes_give_the_same_steps_on_other_processes(world_size, num_workers, shards, tokenizer):
    one = steps_of(shards, tokenizer, 1, 12, num_lanes=4)
    assert steps_of(shards, tokenizer, world_size, 12, num_workers, num_lanes=4) == one


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_checkpoint_goes_on_on_another_number_of_processes(
    num_workers, shards, tokenizer, tmp_path
):
    whole = steps_of(shards, tokenizer, 1, 15, num_lanes=4)
    first = batches_of(shards, tokenizer, num_lanes=4)
    take(first, 7 * 4)  # steps of 8 rows, in batches of 2
    first.save(tmp_path)
    rows = []
    for rank in range(2):
        second = batches_of(shards, tokenizer, rank, 2, num_workers, num_lanes=4)
        second.load(tmp_path)
        rows.append(take(second, 8 * 2))
    for step, expected in enumerate(whole[7:]):
        taken = [row for each in rows for row in each[step * 4 : (step + 1) * 4]]
        assert sorted(taken) == expected


def test_lanes_that_processes_cannot_share_are_refused(shards, tokenizer, tmp_path):
    one = batches_of(shards, tokenizer)
    take(one, 3)
    one.save(tmp_path)
    with pytest.raises(RecipeError, match="in 1 lanes, which 2 processes with 0 workers each"):
        batches_of(shards, tokenizer, 0, 2).load(tmp_path)
    source = DatasetSource(path="a", streaming=True, max_eval_rows=1, num_lanes=6)
    check_lanes(source, 3, 2)
    with pytest.raises(RecipeError, match="6 lanes cannot be shared by 2 processes with 2 workers"):
        check_lanes(source, 2, 2)


def test_other_shards_than_those_of_the_checkpoint_are_refused(shards, tokenizer, tmp_path):
    one = batches_of(shards, tokenizer)
    take(one, 3)
    one.save(tmp_path)
    for file in shards.glob("train-*"):
        file.rename(file.with_name(file.name.replace("00004", "00005")))
    (shards / "train-00004-of-00005.jsonl").write_text('{"text": "more"}\n')
    with pytest.raises(RecipeError, match="has other shards than"):
        batches_of(shards, tokenizer).load(tmp_path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unusable_row_ends_the_batches_with_its_file_and_line(num_workers, shards, tokenizer):
    with (shards / "train-00002-of-00004.jsonl").open("a") as out:
        out.write("{\n")
    with pytest.raises(DataError, match=r"^\S*train-00002-of-00004.jsonl:42: not JSON"):
        take(batches_of(shards, tokenizer, num_workers=num_workers), 400)


def test_a_mixture_that_skips_rows_resumes_to_the_same_bytes(
    checkpoint, helpdesk, shards, tmp_path
):
    (shards / "other").mkdir()
    rows = [{"text": f"other {row} " + "more " * (row % 5)} for row in range(20)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (shards / "other" / "train.jsonl").write_text(lines + "{\n")
    recipe = recipe_for("causal_lm", "full", checkpoint, helpdesk, tmp_path / "whole")
    source = DatasetSource(
        path=str(shards),
        streaming=True,
        max_eval_rows=3,
        on_bad_row="skip",
        shuffle_buffer_size=20,
        weight=1.0,
        mixed_with=(MixedSource(path=str(shards / "other"), weight=1.0),),
    )
    whole = replace(
        recipe,
        task=replace(recipe.task, dataset=source),
        train=replace(TRAIN, max_steps=12),
    )
    metrics = run(whole)
    stopped = replace(whole, output_dir=str(tmp_path / "stopped"))
    with pytest.raises(Preempted, match="stopped at step 9"):
        run(stopped, [SignalAt(8)])
    assert run(stopped)["train_rows_skipped"] == metrics["train_rows_skipped"] == 1
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    records = [
        json.loads((tmp_path / name / "task.json").read_text())["dataset"]["splits"]["train"]
        for name in ("whole", "stopped")
    ]
    assert records[0] == records[1]
    drawn = records[0]["sources"]
    assert [each["path"] for each in drawn] == [f"./{shards.name}", "./other"]
    assert all(each["rows"] > 0 and each["tokens"] > each["rows"] for each in drawn)


def test_two_processes_train_as_one_does(checkpoint, helpdesk, shards, commands, tmp_path):
    recipe = recipe_for("causal_lm", "full", checkpoint, helpdesk, tmp_path / "one")
    source = DatasetSource(path=str(shards), streaming=True, max_eval_rows=3, num_lanes=2)
    one = replace(recipe, task=replace(recipe.task, dataset=source), lora=None)
    metrics = run(one)
    two = replace(one, output_dir=str(tmp_path / "two"))
    config = str(ROOT / "accelerate_configs" / "cpu_2_processes.yaml")
    launch = [commands.python, "-m", "accelerate.commands.launch", "--config_file", config]
    done = subprocess.run(
        [*launch, *script_for(two, tmp_path)[1:]], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "(shards: 4, lanes: 2)" in done.stdout
    again = json.loads((tmp_path / "two" / "task.json").read_text())
    assert again["metrics"]["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
    whole = json.loads((tmp_path / "one" / "task.json").read_text())
    read = [each["dataset"]["splits"]["train"]["sources"] for each in (whole, again)]
    assert read[0] == read[1]
