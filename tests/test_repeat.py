"""`gpt2-recipes repeat`: a recipe with several seeds, and how much its score varies."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from helpers.callbacks import SignalAt
from helpers.named_paths import paths_that_are_gone
from pipelines import flow
from pipelines.errors import Preempted, RecipeError
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Train
from pipelines.repeat import TO_OVERWRITE, SeedScores, parse_seeds, recipes_of, run_seeds
from pipelines.results.check import check_result
from pipelines.results.files import find_result_damage, read_manifest

SEEDS = (42, 43, 44)


@pytest.fixture
def recipe(tasks, checkpoint, tmp_path):
    """A classifier that is trained in a second."""
    return Recipe(
        name="repeated",
        task=tasks["text_classification"],
        model=Model(name_or_path=str(checkpoint)),
        lora=Lora(r=4),
        train=Train(max_steps=4, learning_rate=1e-2, save_steps=2, global_batch_size=8),
        output_dir=str(tmp_path / "repeated"),
    )


def weights(folder):
    """Return the bytes of an adapter."""
    return (folder / "adapter_model.safetensors").read_bytes()


def command(*words, cwd, python=sys.executable, **environment):
    """Run `gpt2-recipes repeat`."""
    return subprocess.run(
        [python, "-m", "pipelines", "repeat", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )


def test_mean_deviation_and_interval_are_those_of_students_t():
    scores = SeedScores("accuracy", {1: 0.8, 2: 0.9, 3: 0.85})
    assert scores.mean == pytest.approx(0.85)
    # Distances from the mean are 0.05, 0.05 and 0: the variance is 2 * 0.0025 / 2
    assert scores.standard_deviation == pytest.approx(0.05)
    # The 97.5 % quantile of t with 2 degrees of freedom is 4.3027
    margin = 4.3027 * 0.05 / 3**0.5
    assert scores.interval == pytest.approx((0.85 - margin, 0.85 + margin), abs=1e-4)


def test_each_seed_gives_what_it_gives_alone_and_every_result_records_all(recipe, tmp_path):
    scores = run_seeds(recipes_of(recipe, SEEDS))
    folders = {seed: tmp_path / "repeated" / f"seed-{seed}" for seed in SEEDS}
    alone = replace(
        recipe, train=replace(recipe.train, seed=44), output_dir=str(tmp_path / "alone")
    )
    metrics = run(alone)
    assert weights(folders[44]) == weights(tmp_path / "alone")
    assert scores.values[44] == metrics["accuracy"]
    assert weights(folders[42]) != weights(folders[43])
    assert paths_that_are_gone(tmp_path, root=tmp_path) == set()
    fingerprints = set()
    for seed, folder in folders.items():
        assert find_result_damage(folder) == []
        found, sidecar = check_result(folder)
        assert found.train.seed == seed
        assert sidecar["seeds"] == scores.to_json()
        assert sidecar["seeds"]["values"][str(seed)] == sidecar["metrics"]["accuracy"]
        fingerprints.add(sidecar["dataset"]["eval_rows_sha256"])
    assert len(fingerprints) == 1
    record = json.loads((tmp_path / "repeated" / "seeds.json").read_text())
    assert record == {
        "name": "repeated",
        "metric": "accuracy",
        **scores.to_json(),
        "folders": {str(seed): f"seed-{seed}" for seed in SEEDS},
    }


def test_the_same_command_resumes_and_trains_no_seed_twice(recipe, tmp_path, capsys):
    whole = run_seeds(recipes_of(replace(recipe, output_dir=str(tmp_path / "whole")), SEEDS))
    first, second = (tmp_path / "repeated" / f"seed-{seed}" for seed in SEEDS[:2])
    with pytest.raises(Preempted, match="stopped at step 3 with a checkpoint"):
        run_seeds(recipes_of(recipe, SEEDS), [SignalInSeed(43)])
    before = read_manifest(first)["run"]
    assert not (second / "task.json").exists()
    assert "seeds" not in read_manifest(first)
    capsys.readouterr()
    assert run_seeds(recipes_of(recipe, SEEDS)) == whole
    printed = capsys.readouterr().out
    assert f"{first} holds the finished result of this run" in printed
    assert "resuming from checkpoint-3" in printed
    assert read_manifest(first)["run"] == before
    assert weights(second) == weights(tmp_path / "whole" / "seed-43")


class SignalInSeed(SignalAt):
    """The process gets a signal after 2 steps of one seed, which ends in step 3."""

    def __init__(self, seed):
        super().__init__(2)
        self.seed = seed

    def on_step_begin(self, args, state, control, **kwargs):
        if args.seed == self.seed:
            super().on_step_begin(args, state, control, **kwargs)


def test_a_signal_in_the_final_save_of_a_seed_lets_no_other_seed_begin(
    recipe, tmp_path, monkeypatch
):
    save = flow.save

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*arguments)

    monkeypatch.setattr(flow, "save", signalled)
    with pytest.raises(Preempted, match="run the same command again to resume"):
        run_seeds(recipes_of(recipe, SEEDS))
    assert find_result_damage(tmp_path / "repeated" / "seed-42") == []
    assert not (tmp_path / "repeated" / "seed-43").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_overwriting_resumes_too(recipe, tmp_path):
    run_seeds(recipes_of(recipe, SEEDS))
    changed = replace(recipe, train=replace(recipe.train, learning_rate=2e-2))
    with pytest.raises(RecipeError, match="replace it with --overwrite"):
        run_seeds(recipes_of(changed, SEEDS))
    again = replace(changed, overwrite=True)
    with pytest.raises(Preempted):
        run_seeds(recipes_of(again, SEEDS), [SignalInSeed(43)])
    folders = [tmp_path / "repeated" / f"seed-{seed}" for seed in SEEDS]
    replaced = [read_manifest(folder)["run"] for folder in folders]
    scores = run_seeds(recipes_of(again, SEEDS))
    now = [read_manifest(folder) for folder in folders]
    assert now[0]["run"] == replaced[0]
    assert now[1]["run"] != replaced[1]
    assert now[2]["run"] != replaced[2]
    assert all(each["seeds"] == scores.to_json() for each in now)
    assert not any((folder / TO_OVERWRITE).exists() for folder in folders)
    run_seeds(recipes_of(again, SEEDS))  # asked for once more, it replaces all
    assert read_manifest(folders[0])["run"] != replaced[0]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("2", (7, 8)), ("3", (7, 8, 9)), ("1,2,3", (1, 2, 3)), (" 4, 0", (4, 0))],
)
def test_seeds_are_counted_or_listed(text, seeds):
    assert parse_seeds(text, first=7) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "0 is out of range; give 2 to 100 seeds, or list them, as 1,2,3."),
        ("1", "1 is out of range; give 2 to 100 seeds"),
        ("2026", "2026 is out of range"),
        ("5,", "'5,' is neither a number of seeds, as 5, nor a list of them, as 1,2,3."),
        ("1,2,1", "1,2,1 has a seed twice."),
        ("1,01", "1,01 has a seed twice."),
        ("many", "'many' is neither"),
        ("-3", "'-3' is neither"),
        ("1,-2", "'1,-2' is neither"),
        ("1.5", "'1.5' is neither"),
        ("", "'' is neither"),
        ("1,4294967296", "1,4294967296 has a seed above 4,294,967,295."),
        (",".join(map(str, range(101))), "lists 101 seeds; give 2 to 100."),
    ],
)
def test_seeds_that_cannot_be_are_refused(text, message):
    with pytest.raises(RecipeError) as caught:
        parse_seeds(text, first=42)
    assert str(caught.value).startswith(f"seeds: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "repeat takes a RECIPE before the recipe's flags."),
        (("--seeds", "3"), "repeat takes a RECIPE before the recipe's flags."),
        (("recipe.json", "--seeds", "0"), "--seeds: 0 is out of range"),
        (("recipe.json", "--seeds", "1,1"), "--seeds: 1,1 has a seed twice."),
        (
            ("recipe.json", "--seeds", "1,2", "--train.seed", "5"),
            "--train.seed: 5 contradicts --seeds 1,2, which lists the seeds.",
        ),
        (
            ("recipe.json", "--push-to", "user/name", "--output-dir", "out"),
            "--push-to: repeat makes several results and publishes none. Publish one of them "
            "afterwards, as with gpt2-recipes publish out/seed-42 user/name.",
        ),
    ],
)
def test_wrong_input_ends_with_one_message_before_anything_is_loaded(
    words, message, recipe, tmp_path
):
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    words = words or ("--overwrite",)
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "repeated").exists()


def test_the_card_says_how_many_seeds_stand_behind_a_score(recipe, tmp_path):
    from pipelines.hub.card import model_card

    run_seeds(recipes_of(recipe, (5, 6)))
    folder = tmp_path / "repeated" / "seed-6"
    found, sidecar = check_result(folder)
    sidecar["seeds"] |= {"mean": 0.852, "standard_deviation": 0.004}
    sidecar["metrics"]["accuracy"] = 0.855
    card = model_card(found, sidecar, "user/repeated")
    line = "Mean accuracy of 2 seeds: 0.8520 ± 0.0040 (standard deviation). This is seed 6, with "
    assert f"{line}0.8550." in card
    del sidecar["seeds"]
    assert "The scores are of one seed, 6." in model_card(found, sidecar, "user/repeated")


def test_two_processes_repeat_together(recipe, commands, tmp_path):
    (tmp_path / "recipe.json").write_text(replace(recipe, output_dir="two").to_json())
    words = ("recipe.json", "--seeds", "2", "--config-file", "cpu_2_processes")
    done = command(*words, cwd=tmp_path, python=commands.python)
    assert done.returncode == 0, done.stderr
    assert "seed 43, 2 of 2:" in done.stdout
    assert done.stdout.count("repeated: 2 process(es) on cpu") == 2
    assert "repeated: accuracy of 2 seeds: mean " in done.stdout
    assert len(json.loads((tmp_path / "two" / "seeds.json").read_text())["values"]) == 2
