"""A run that is killed at any instant resumes, and ends in the same bytes."""

import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, replace

import pytest

from pipelines import selftest
from pipelines.data.source import DatasetSource
from pipelines.recipe.values import Model
from pipelines.results.files import STAGE
from pipelines.selftest import KillInWrite, RunRecipe, Sandbox
from pipelines.training.checkpoints import MARKER, all_checkpoints, find_damage
from pipelines.workers import STOP_SIGNALS

CHECKPOINT = (
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
)


@dataclass(frozen=True)
class KillAtDelete:
    """The process is killed when it is about to delete an optimizer's state for the nth time."""

    count: int

    def inject(self):
        seen = []

        def removed(event, arguments):
            if event == "os.remove" and str(arguments[0]).endswith("optimizer.pt"):
                seen.append(event)
                if len(seen) == self.count:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(removed)
        return ()


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Sandbox:
    """A bench with a base and a run that nothing interrupted."""
    bench = Sandbox(tmp_path_factory.mktemp("bench"))
    bench.expect(bench.base(), None, 0)
    bench.expect(bench.adapter("uninterrupted"), None, 0)
    return bench


def test_killed_in_the_middle_of_each_file_it_goes_on_to_the_same_bytes(bench):
    recipe = bench.adapter("files")
    for name in CHECKPOINT:
        bench.expect(recipe, KillInWrite(f"checkpoint-4/{name}"), -signal.SIGKILL)
        newest, older = all_checkpoints(bench.checkpoints("files"))
        assert find_damage(newest) == "its writing was interrupted", name
        assert find_damage(older) is None, name
    bench.expect(recipe, KillInWrite(f"checkpoint-4/{MARKER}.tmp"), -signal.SIGKILL)
    assert sorted(f.name for f in newest.iterdir()) == sorted(CHECKPOINT)
    said = "resuming from checkpoint-2"
    bench.expect(recipe, KillInWrite("checkpoint-6/optimizer.pt"), -signal.SIGKILL, said)
    for name in ("adapter_model.safetensors", "recipe.json", "task.json.tmp"):
        bench.expect(recipe, KillInWrite(f"files/{STAGE}/{name}"), -signal.SIGKILL)
    bench.expect(recipe, None, 0, "resuming from checkpoint-6")
    bench.require_same_weights("files")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "resuming from checkpoint-6"),  # by rotation
        (2, "holds the finished result of this run"),  # after the result
    ],
)
def test_killed_while_it_deletes_a_checkpoint_it_goes_on_to_the_same_bytes(count, said, bench):
    recipe = bench.adapter(f"deleting-{count}")
    bench.expect(recipe, KillAtDelete(count), -signal.SIGKILL)
    bench.expect(recipe, None, 0, said)
    assert not bench.checkpoints(recipe.name).exists()
    bench.require_same_weights(recipe.name)


def test_bad_rows_of_a_stream_in_a_worker_are_told_without_a_trace(bench):
    data = bench.folder / "stream"
    data.mkdir()
    rows = (bench.folder / "train.jsonl").read_text()
    (data / "train.jsonl").write_text(rows + '{"text": 5}\n')
    recipe = bench.base()
    source = DatasetSource(path=str(data), streaming=True, max_eval_rows=4)
    streamed = replace(
        recipe,
        task=replace(recipe.task, dataset=source),
        model=Model(name_or_path=str(bench.folder / "base")),
        train=replace(recipe.train, dataloader_num_workers=2, max_steps=50),
        output_dir=str(bench.folder / "streamed"),
    )
    code, said = bench.run(streamed)
    assert code == 3, said
    assert "train.jsonl:49: column 'text' holds 5, not a text" in said
    assert "Traceback" not in said
    assert "Traceback" in (bench.folder / "streamed" / "run.log").read_text()


@pytest.mark.parametrize("num_kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(num_kills, bench):
    # long enough that several kills hit one run, however fast the machine
    train = replace(bench.base().train, max_steps=600, save_steps=3)
    whole = replace(bench.adapter(f"whole-{num_kills}"), train=train)
    recipe = replace(bench.adapter(f"random-{num_kills}"), train=train)
    bench.expect(whole, None, 0)
    generator = random.Random(num_kills)
    num_resumed = kills = 0
    while kills < num_kills:
        process = bench.start(RunRecipe(recipe.to_json()))
        if kills % 5:  # every fifth before training begins, or soon after
            while process.is_alive() and "step " not in bench.output.read_text():
                time.sleep(0.01)
        time.sleep(generator.random() * 0.4)
        process.kill()
        code, said = bench.wait(process)
        assert code in (-signal.SIGKILL, 0)
        kills += 1
        num_resumed += "resuming from checkpoint-" in said
        for checkpoint in all_checkpoints(bench.checkpoints(recipe.name)):
            if (checkpoint / MARKER).exists():
                assert find_damage(checkpoint) is None
    bench.expect(recipe, None, 0)
    assert num_resumed >= num_kills // 2
    found, wanted = (bench.folder / r.name / "adapter_model.safetensors" for r in (recipe, whole))
    assert found.read_bytes() == wanted.read_bytes()


def test_a_process_of_the_selftest_gets_signals_that_its_parent_blocks(tmp_path):
    def blocked(callbacks):
        os.write(1, str(signal.pthread_sigmask(signal.SIG_BLOCK, ())).encode())

    def child():
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        selftest.in_process(blocked, None, tmp_path / "output")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert (tmp_path / "output").read_text() == "set()"


def test_the_selftest_holds_and_tells_what_does_not(capfd, monkeypatch):
    def breaks(bench):
        """Find a run that never was."""
        bench.require_same_weights("nowhere")

    start = time.monotonic()
    assert selftest.selftest()
    assert time.monotonic() - start < 90
    said = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["ok"] * len(selftest.CHECKS)
    monkeypatch.setattr(selftest, "CHECKS", (breaks, selftest.stops_at_nan))
    assert not selftest.selftest()
    said = capfd.readouterr().out
    assert said.count("failed") == 2
    assert "Find a run that never was." in said
    assert "is not a folder" in said  # the base was not trained
