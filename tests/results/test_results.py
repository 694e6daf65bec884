"""A result is written whole, never mixed and never overwritten unasked; stops lose nothing."""

import os
import pty
import random
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from helpers.resumable_runs import cut, flip
from pipelines.errors import CheckpointError, RecipeError
from pipelines.flow import run
from pipelines.hub.load import load_result
from pipelines.hub.publish import read_publishable_result as read_published
from pipelines.inference.merge import merge
from pipelines.log import FILE, LOG, log_to_folder
from pipelines.recipe.recipe import Recipe
from pipelines.results.files import (
    STAGE,
    consistent_read,
    files_of,
    find_result_damage,
    install_staged_result,
    read_manifest,
    recover_interrupted_swap,
    write_manifest,
)
from pipelines.results.lock import lock_for_reading, lock_run_folder
from pipelines.selftest import Sandbox, ScoreAgain, SignalBefore
from pipelines.training.checkpoints import all_checkpoints, find_damage, step_of


@dataclass(frozen=True)
class Calling:
    """A fault that is a function: `act` is called, in the run's process, before `module.name`."""

    module: str
    name: str
    act: str
    count: int = 1
    folder: Path | None = None

    def inject(self):
        """Wrap it."""
        import importlib

        *owners, name = self.name.split(".")
        owner = importlib.import_module(self.module)
        for each in owners:
            owner = getattr(owner, each)
        inner, calls = getattr(owner, name), []

        def wrapped(*arguments, **options):
            calls.append(1)
            if len(calls) == self.count:
                ACTS[self.act](*([self.folder] if self.folder else []))
            return inner(*arguments, **options)

        setattr(owner, name, wrapped)
        return ()


def fill_disk() -> None:
    """Let no file of this process grow beyond 10 kB."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


def fail_rename() -> None:
    """Let renames of files of a result fail."""
    real = os.replace

    def refusing(source, target):
        if STAGE in str(source) and not str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return real(source, target)

    os.replace = refusing


def fail_fsync() -> None:
    """Let fsync fail."""

    def refusing(descriptor):
        raise OSError(5, "Input/output error")

    os.fsync = refusing


def put_file_in_place(folder: Path) -> None:
    """Remove a run's folder and put a file there, so that it cannot be made again."""
    shutil.rmtree(folder)
    folder.write_text("")


ACTS = {
    "vanish": shutil.rmtree,
    "no folder": put_file_in_place,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGHUP": lambda: os.kill(os.getpid(), signal.SIGHUP),
    "full disk": fill_disk,
    "rename": fail_rename,
    "fsync": fail_fsync,
}


@dataclass(frozen=True)
class KillAt:
    """The process is killed at the nth rename or removal of a file while a result is replaced."""

    count: int

    def inject(self):
        """Watch the renames and removals inside `install_staged_result`."""
        import pipelines.results.save

        real = pipelines.results.save.install_staged_result

        def install_staged_result(folder):
            kill_at(self.count)
            real(folder)

        pipelines.results.save.install_staged_result = install_staged_result
        return ()


def kill_at(count: int) -> None:
    """Kill this process at the nth rename or removal from now on."""
    seen = []

    def watch(event, arguments):
        if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            seen.append(event)
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Sandbox:
    """A bench with a base, an adapter and a fully tuned classifier that nothing interrupted."""
    bench = Sandbox(tmp_path_factory.mktemp("bench"))
    bench.expect(bench.base(), None, 0)
    bench.expect(bench.adapter("uninterrupted"), None, 0)
    bench.expect(full(bench, "full"), None, 0)
    return bench


def full(bench: Sandbox, name: str):
    """Return a recipe that tunes all weights."""
    return replace(bench.adapter(name), lora=None, quantization=None)


def names(folder: Path) -> set[str]:
    """Return the names of the files that belong to a result."""
    return {file.name for file in files_of(folder)}


def same_result(folder: Path, other: Path) -> bool:
    """Tell whether two results have the same weights and the same files, and are whole."""
    assert find_result_damage(folder) == []
    [weights], [wanted] = (list(f.glob("*model.safetensors")) for f in (folder, other))
    return weights.read_bytes() == wanted.read_bytes() and names(folder) == names(other)


def copy_of(bench: Sandbox, source: str, name: str) -> Path:
    """Copy a finished result to a folder of its own, as if a run of that name had left it."""
    return shutil.copytree(bench.folder / source, bench.folder / name)


def test_full_tuning_after_lora_under_one_name_leaves_no_adapter(bench):
    folder = copy_of(bench, "uninterrupted", "kinds")
    recipe = replace(full(bench, "kinds"), overwrite=True)
    bench.expect(recipe, None, 0)
    assert same_result(folder, bench.folder / "full")
    assert not list(folder.glob("adapter*"))
    assert '"overwrite": false' in (folder / "recipe.json").read_text()


def test_other_values_under_a_finished_name_are_refused_field_by_field(bench):
    folder = copy_of(bench, "uninterrupted", "other")
    recipe = replace(bench.adapter("uninterrupted"), output_dir=str(folder))
    bench.expect(recipe, None, 0, "holds the finished result of this run", "accuracy")
    before = {file.name: file.read_bytes() for file in folder.glob("*.*s*")}
    log = (folder / "run.log").read_bytes()
    changed = replace(recipe, train=replace(recipe.train, learning_rate=5e-3, seed=1))
    bench.expect(
        changed,
        None,
        2,
        "--train.learning-rate: the result in",
        "has 0.01, this run has 0.005",
        "--train.seed: the result in",
        "--overwrite",
    )
    bench.expect(full(bench, "other"), None, 2, "--lora: the result in")
    data = shutil.copytree(bench.folder, bench.folder / "data", ignore=only_rows)
    source = replace(recipe.task.dataset, path=str(data))
    moved = replace(recipe, task=replace(recipe.task, dataset=source))
    bench.expect(moved, None, 2, "--task.dataset.path: the result in")
    original = (bench.folder / "train.jsonl").read_text()
    try:
        (bench.folder / "train.jsonl").write_text(original.replace("late", "gone"))
        bench.expect(recipe, None, 2, "--data.train: the result in")
    finally:
        (bench.folder / "train.jsonl").write_text(original)
    assert {file.name: file.read_bytes() for file in folder.glob("*.*s*")} == before
    assert (folder / "run.log").read_bytes().startswith(log)


def test_the_same_command_publishes_a_finished_result_that_was_not(bench, monkeypatch):
    recipe = bench.adapter("uninterrupted")
    run_before = read_manifest(recipe.folder)["run"]
    sent = []
    monkeypatch.setattr("pipelines.inputs.check_destination", lambda *a, **o: None)
    monkeypatch.setattr("pipelines.finished.publish_finished", lambda *a, **o: sent.append((a, o)))
    metrics = run(replace(recipe, push_to="me/result"))
    assert metrics == read_manifest(recipe.folder)["metrics"]
    assert sent == [((recipe.folder, "me/result"), {"public": False})]
    assert read_manifest(recipe.folder)["run"] == run_before


def only_rows(folder: str, entries: list[str]) -> list[str]:
    """Ignore all but the rows of the bench."""
    return [name for name in entries if not name.endswith(".jsonl")]


def write_result(folder: Path, files: dict[str, str], run: str) -> None:
    """Write a small result by hand."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    write_manifest(folder, {"run": run, "labels": []})


OLD = {"recipe.json": "a", "adapter_model.safetensors": "b", "adapter_config.json": "c"}
NEW = {"recipe.json": "d", "model.safetensors": "e", "config.json": "f"}


def test_a_kill_at_any_instant_of_the_replacement_leaves_the_old_or_the_new_result(tmp_path):
    states = []
    for count in range(1, 100):
        folder = tmp_path / str(count)
        write_result(folder, OLD, "old")
        (folder / "report.html").write_text("of the old result")
        write_result(folder / STAGE, NEW, "new")
        if (child := os.fork()) == 0:
            kill_at(count)
            install_staged_result(folder)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if (folder / "task.json").exists():
            assert find_result_damage(folder) == []
            states.append(read_manifest(folder)["run"])
        else:
            states.append("none")
        recover_interrupted_swap(folder)
        assert find_result_damage(folder) == []
        assert read_manifest(folder)["run"] == "new"
        assert {file.name for file in folder.iterdir()} == {*NEW, "task.json"}
        if status == 0:
            break
        assert status == -signal.SIGKILL
    changes = [state for i, state in enumerate(states) if i == 0 or state != states[i - 1]]
    assert changes == ["old", "none", "new"]
    # removals, renames, that of task.json, and the removal of the report
    assert states.count("none") == 3 + 3 + 1 + 1


def test_a_stage_that_is_not_whole_is_removed_and_the_old_result_stays(tmp_path):
    for spoil in (
        lambda stage: (stage / "task.json").unlink(),
        lambda stage: (stage / "model.safetensors").unlink(),
        lambda stage: (stage / "config.json").write_text("g"),
        lambda stage: (stage / "task.json").write_text("[]"),
        lambda stage: (stage / "task.json").write_text('{"files": {"../x": {}}}'),
    ):
        write_result(tmp_path / "run", OLD, "old")
        write_result(tmp_path / "run" / STAGE, NEW, "new")
        spoil(tmp_path / "run" / STAGE)
        recover_interrupted_swap(tmp_path / "run")
        assert find_result_damage(tmp_path / "run") == []
        assert {file.name for file in (tmp_path / "run").iterdir()} == {*OLD, "task.json"}
        shutil.rmtree(tmp_path / "run")


def test_a_run_killed_while_it_replaces_a_result_or_after_is_finished_by_the_same_command(bench):
    folder = copy_of(bench, "uninterrupted", "swap")
    recipe = replace(full(bench, "swap"), overwrite=True)
    bench.expect(recipe, KillAt(4), -signal.SIGKILL)
    assert find_result_damage(folder) == ["has no task.json: no finished run left a result there."]
    code, said = bench.wait(bench.start(ScoreAgain(folder)))
    assert code == 2
    assert "has no task.json" in said
    bench.expect(recipe, None, 0, "holds the finished result of this run")
    assert same_result(folder, bench.folder / "full")
    run = read_manifest(folder)["run"]
    bench.expect(recipe, Calling("pipelines.flow", "delete_checkpoints", "kill"), -9)
    assert read_manifest(folder)["run"] != run  # the finished result was trained again
    run = read_manifest(folder)["run"]
    bench.expect(recipe, None, 0, "holds the finished result of this run")
    assert read_manifest(folder)["run"] == run
    assert not bench.checkpoints("swap").exists()


def test_a_result_with_other_files_than_its_own_is_refused_by_name(bench, tmp_path):
    full_weights = bench.folder / "full" / "model.safetensors"
    spoilt = {
        "model.safetensors does not belong": lambda f: shutil.copy(full_weights, f),
        "pytorch_model.bin does not belong": lambda f: (f / "pytorch_model.bin").write_text(""),
        "vocab.json does not belong": lambda f: (f / "vocab.json").write_text("{}"),
        "recipe.json has": lambda f: (f / "recipe.json").write_text(other_recipe(f)),
        "adapter_model.safetensors has changed": lambda f: flip(f / "adapter_model.safetensors"),
        "tokenizer.json is missing": lambda f: (f / "tokenizer.json").unlink(),
        "task.json is damaged": lambda f: cut(f / "task.json"),
        "task.json does not list": lambda f: (f / "task.json").write_text('{"metrics": {}}'),
        "has no task.json": lambda f: (f / "task.json").unlink(),
    }
    recipe = bench.adapter("uninterrupted")
    for number, (message, spoil) in enumerate(spoilt.items()):
        folder = shutil.copytree(bench.folder / "uninterrupted", tmp_path / str(number))
        (folder / "README.md").write_text("the user's own")
        (folder / "notes.txt").write_text("the user's own")
        assert load_result(folder).labels
        spoil(folder)
        for use in (load_result, read_published, lambda f: merge(f, tmp_path / "out")):
            with pytest.raises(RecipeError, match=message.split(" is missing")[0]):
                use(folder)
        with pytest.raises(RecipeError, match="--overwrite"):
            run(replace(recipe, output_dir=str(folder)))


def other_recipe(folder: Path) -> str:
    """Return a result's recipe with another learning rate."""
    return (
        (folder / "recipe.json").read_text().replace('"learning_rate": 0.01', '"learning_rate": 1')
    )


def read_during_replacement(folder: Path, act) -> None:
    """Read a result, replace it in the middle, and read on by `act`."""
    with consistent_read(folder, "x"):
        install_staged_result(folder)
        act()


def test_a_result_that_is_replaced_while_it_is_read_is_reported(tmp_path):
    write_result(tmp_path / "run", OLD, "old")
    with consistent_read(tmp_path / "run", "x") as sidecar:
        assert sidecar["run"] == "old"
    for act in (lambda: None, lambda: (tmp_path / "run" / "gone").read_text()):
        write_result(tmp_path / "run" / STAGE, NEW, "new" * random.randint(1, 99))
        with pytest.raises(RecipeError, match="was replaced"):
            read_during_replacement(tmp_path / "run", act)
    with pytest.raises(FileNotFoundError), consistent_read(tmp_path / "run", "x"):
        (tmp_path / "run" / "gone").read_text()


@pytest.mark.parametrize("save_steps", [2, None])
def test_a_signal_in_the_last_evaluation_costs_only_that(save_steps, bench):
    recipe = bench.adapter(f"last-{save_steps}")
    recipe = replace(recipe, train=replace(recipe.train, save_steps=save_steps))
    fault = Calling("pipelines.tasks.base", "Score.as_metrics", "SIGTERM")
    said = "stopped in the last evaluation, with a checkpoint of step 6"
    bench.expect(recipe, fault, 75, said)
    assert find_damage(bench.checkpoints(recipe.name) / "checkpoint-6") is None
    assert not (bench.folder / recipe.name / "task.json").exists()
    code, said = bench.run(recipe)
    assert code == 0, said
    assert "resuming from checkpoint-6" in said
    assert "step 6 of 6" not in said  # no step was trained again
    bench.require_same_weights(recipe.name)


@pytest.mark.parametrize(
    ("module", "name", "act"),
    [
        ("pipelines.preparing.rows", "load_splits", "SIGTERM"),
        ("pipelines.flow", "build_model", "SIGHUP"),
        (
            "pipelines.tasks.base",
            "Score.as_metrics",
            "SIGTERM",
        ),  # in the evaluation before training
    ],
)
def test_a_signal_before_the_first_step_ends_the_run_at_once(module, name, act, bench):
    recipe = replace(bench.base(), name="early", output_dir=str(bench.folder / f"early-{name}"))
    bench.expect(recipe, Calling(module, name, act), 75, "stopped", "run the same command again")
    assert not all_checkpoints(bench.folder / f"early-{name}" / "checkpoints")


def test_a_signal_while_the_result_is_written_lets_it_be_finished(bench):
    for number, (name, act) in enumerate(
        (("write_result", "SIGTERM"), ("install_staged_result", "SIGHUP"))
    ):
        recipe = bench.adapter(f"saving-{number}")
        bench.expect(recipe, Calling("pipelines.results.save", name, act), 0)
        assert find_result_damage(bench.folder / recipe.name) == []
        assert not bench.checkpoints(recipe.name).exists()


@dataclass(frozen=True)
class InTerminal:
    """Run a recipe in a terminal of its own."""

    recipe: str
    terminal: str
    ignored: bool

    def __call__(self, callbacks) -> None:
        """Take the terminal as the controlling one."""
        os.setsid()
        terminal = os.open(self.terminal, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(terminal, descriptor)
        if self.ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run(Recipe.from_json(self.recipe), callbacks)


def test_a_terminal_that_is_closed_stops_the_run_with_a_checkpoint(bench):
    recipe = bench.adapter("terminal")
    recipe = replace(recipe, train=replace(recipe.train, max_steps=100_000, save_steps=None))
    ours, theirs = pty.openpty()
    process = bench.start(InTerminal(recipe.to_json(), os.ttyname(theirs), ignored=False))
    shown = b""
    while b"/100,000" not in shown:  # of the live line
        shown += os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
    code, _ = bench.wait(process)
    assert code == 75
    [checkpoint] = all_checkpoints(bench.checkpoints("terminal"))
    assert find_damage(checkpoint) is None
    log = (bench.folder / "terminal" / FILE).read_text()
    assert f"stopped at step {step_of(checkpoint):,}" in log


@dataclass(frozen=True)
class Nohup:
    """SIGHUP is ignored, as under nohup, and arrives before a step."""

    def inject(self):
        """Ignore it and send it."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return SignalBefore(2, signal.SIGHUP).inject()


def test_a_hangup_stops_with_a_checkpoint_unless_it_is_ignored(bench):
    recipe = bench.adapter("hangup")
    bench.expect(recipe, SignalBefore(2, signal.SIGHUP), 75, "stopped at step 3 with a checkpoint")
    bench.expect(recipe, None, 0, "resuming from checkpoint-3")
    bench.require_same_weights("hangup")
    bench.expect(bench.adapter("nohup"), Nohup(), 0)


ERRORS = [
    (
        "pipelines.results.save",
        "write_result",
        "full disk",
        "MB are free there. A result that was there",
    ),
    ("pipelines.results.save", "write_result", "fsync", "Input/output error"),
    ("pipelines.results.save", "install_staged_result", "rename", "puts the new result in place"),
]


@pytest.mark.parametrize(("module", "name", "act", "message"), ERRORS)
def test_an_error_of_the_disk_at_the_last_save_loses_nothing(module, name, act, message, bench):
    label = f"{name}-{act}".replace(" ", "-")
    folder = copy_of(bench, "full", label)
    recipe = replace(bench.adapter(label), overwrite=True)
    fault = Calling(module, name, act)
    bench.expect(recipe, fault, 5, "could not be written", "It needs about", message)
    if act != "rename":
        assert same_result(folder, bench.folder / "full")
    assert find_damage(bench.checkpoints(label) / "checkpoint-6") is None
    bench.expect(recipe, None, 0)
    assert same_result(folder, bench.folder / "uninterrupted")


def test_an_error_of_the_disk_at_a_marker_leaves_the_checkpoint_before(bench):
    recipe = bench.adapter("marker")
    fault = Calling("pipelines.training.trainer", "mark_complete", "fsync", 2)
    bench.expect(recipe, fault, 5, "checkpoint-4 could not be written: Input/output error")
    bench.expect(recipe, None, 0, "resuming from checkpoint-2")
    bench.require_same_weights("marker")


@pytest.mark.parametrize(("name", "count"), [("mark_complete", 2), ("save", 1)])
def test_a_folder_that_vanishes_is_made_again_or_reported(name, count, bench):
    module = "pipelines.training.trainer" if name == "mark_complete" else "pipelines.flow"
    for act, code in (("vanish", 0 if name == "save" else 5), ("no folder", 5)):
        recipe = bench.adapter(f"{name}-{act}".replace(" ", "-"))
        fault = Calling(module, name, act, count, bench.folder / recipe.name)
        bench.expect(recipe, fault, code, *(["could not be written"] if code else []))
        if code == 0:
            assert same_result(recipe.folder, bench.folder / "uninterrupted")


def log_and_fail(folder: Path) -> None:
    """Log a line to a folder and raise an error."""
    with log_to_folder(folder):
        LOG.info("a line that does not fit on the disk")
        raise CheckpointError("what ended it")


def test_a_full_disk_under_the_log_hides_no_error(tmp_path):
    (tmp_path / FILE).symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="what ended it"):
        log_and_fail(tmp_path)
    (tmp_path / "other" / FILE).mkdir(parents=True)
    with pytest.raises(RecipeError, match="cannot be written"), log_to_folder(tmp_path / "other"):
        pass


@dataclass(frozen=True)
class ScoreOf:
    """The last evaluation gives another accuracy."""

    accuracy: float

    def inject(self):
        """Change what the run reads of the evaluation."""
        from pipelines.training.trainer import RecipeTrainer

        real = RecipeTrainer.score

        def score(trainer, split):
            found = real(trainer, split)
            return replace(found, metrics=found.metrics | {"accuracy": self.accuracy})

        RecipeTrainer.score = score
        return ()


def test_a_score_that_is_not_finite_says_how_to_score_again(bench):
    data = bench.folder / "others"
    data.mkdir()
    shutil.copy(bench.folder / "train.jsonl", data)
    lines = (bench.folder / "test.jsonl").read_text().splitlines()
    (data / "test.jsonl").write_text("\n".join(lines))
    recipe = bench.adapter("not-finite")
    source = replace(recipe.task.dataset, path=str(data))
    recipe = replace(recipe, task=replace(recipe.task, dataset=source))
    bench.expect(recipe, ScoreOf(float("nan")), 4, "--allow-changed data.eval", "accuracy is nan")
    (data / "test.jsonl").write_text("\n".join(lines[:8]))
    allowed = replace(recipe, allow_changed=("data.eval",))
    bench.expect(allowed, None, 0, "resuming from checkpoint-6", "data.eval changes from")


def test_publish_and_runs_exclude_each_other(tmp_path):
    folder = tmp_path / "run"
    write_result(folder, OLD, "old")
    with lock_run_folder(folder):
        (folder / ".publish-killed").mkdir()
        with lock_for_reading(folder):  # the run itself publishes
            assert (folder / ".publish-killed").exists()
    with lock_for_reading(folder), lock_for_reading(folder):
        assert not (folder / ".publish-killed").exists()
        with (
            pytest.raises(RecipeError, match="another command is reading"),
            lock_run_folder(folder),
        ):
            pass
    (folder / ".publish-killed").mkdir()
    with lock_run_folder(folder):
        assert not (folder / ".publish-killed").exists()
