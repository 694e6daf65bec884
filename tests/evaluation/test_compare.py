"""Comparisons of results: what differs, what came out, and whether chance explains it."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from helpers.written_results import write_classifier
from pipelines.data.source import DatasetSource
from pipelines.errors import RecipeError
from pipelines.evaluation.compare import compare
from pipelines.evaluation.comparison_table import to_json
from pipelines.metrics.bootstrap import bootstrap, paired_bootstrap
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Int8, Lora, Model, Train
from pipelines.results.files import write_manifest
from pipelines.tasks.text_classification import TextClassification

RECIPE = Recipe(
    name="plain",
    task=TextClassification(dataset=DatasetSource(path="./rows.jsonl")),
    model=Model(name_or_path="user/base"),
    lora=Lora(r=8),
)
HITS = [1, 1, 0, 1, 0, 0, 1, 1, 0, 1]


def command(*words):
    """Run `gpt2-recipes compare` in a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "compare", *map(str, words)],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def results(tmp_path):
    """A baseline, and a result with 2 more hits and without a wrong row that was right."""
    better = [1, 1, 1, 1, 1, 0, 1, 1, 0, 1]
    other = replace(RECIPE, name="other", lora=Lora(r=16), train=Train(seed=7))
    return [
        write_classifier(tmp_path / "a", RECIPE, HITS),
        write_classifier(tmp_path / "b", other, better, loss=0.25),
    ]


def test_fields_that_differ_are_listed_with_their_values(tmp_path):
    paths = []
    for name, changes in {
        "a": {},
        "b": {"lora": Lora(r=16), "output_dir": "elsewhere", "push_to": "user/b"},
        "c": {"lora": None},
        "d": {"quantization": Int8(), "train": Train(learning_rate=1e-3)},
    }.items():
        paths.append(write_classifier(tmp_path / name, replace(RECIPE, name=name, **changes), HITS))
    assert compare(paths[:2]).fields == {"lora.r": [8, 16]}
    assert compare([paths[0], paths[0]]).fields == {}
    fields = compare(paths).fields
    assert list(fields) == ["lora", "quantization", "train.learning_rate"]
    assert [value and value["r"] for value in fields["lora"]] == [8, 16, None, 8]
    assert [bool(value) for value in fields["quantization"]] == [False, False, False, True]
    assert fields["train.learning_rate"] == [2e-4, 2e-4, 2e-4, 1e-3]


def test_the_difference_is_that_of_paired_rows(results):
    (test,) = compare(results).tests
    assert test.value == pytest.approx(0.2, abs=1e-12)
    # Two of ten rows differ, both in favour of b. A resample of 10 rows has neither of them with
    # probability 0.8 ** 10 = 0.107, and then a difference of 0; none has a lower one. p is twice
    # that.
    assert test.p_value == pytest.approx(2 * 0.8**10, abs=0.02)
    assert test.interval == pytest.approx((0.0, 0.5), abs=1e-12)
    # Unpaired intervals would be those of the two scores, and far wider
    assert compare(results[::-1]).tests[0].value == pytest.approx(-0.2, abs=1e-12)


def test_equal_predictions_have_no_difference(tmp_path):
    paths = [write_classifier(tmp_path / name, RECIPE, HITS) for name in "ab"]
    (test,) = compare(paths).tests
    assert (test.value, test.interval, test.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_the_test_holds_its_level():
    """Of 200 pairs of equally good models, about 5 % have a p-value below 0.05."""
    generator = np.random.default_rng(1)
    below = 0
    for _ in range(200):
        first, second = generator.normal(size=(2, 100, 1))
        test = paired_bootstrap(first, second, lambda means: means[:, 0], num_resamples=500)
        below += test.p_value < 0.05
    assert 2 <= below <= 20  # binomial (200, 0.05): outside with probability below 0.01


def test_intervals_do_not_depend_on_how_many_resamples_are_drawn_at_once(monkeypatch):
    from pipelines.metrics import bootstrap as module

    rows = np.random.default_rng(0).normal(size=(50, 2))
    whole = bootstrap(rows, lambda means: means[:, 0] - means[:, 1])
    monkeypatch.setattr(module, "CHUNK", 120)
    assert bootstrap(rows, lambda means: means[:, 0] - means[:, 1]) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": "c" * 64}, "was scored on other rows than .*: SHA-256 cccccccccccc of split 'te"),
        ({"primary": "macro_f1", "macro_f1": 0.5}, "its score is macro_f1, that of .* accuracy"),
        ({"predicted_tokens": 20}, r"its tokens are others than those of .* \(20, there 10\)"),
    ],
)
def test_scores_of_other_rows_are_refused_unless_asked_for(tmp_path, changes, message):
    paths = [
        write_classifier(tmp_path / "a", RECIPE, HITS, predicted_tokens=10),
        write_classifier(tmp_path / "b", RECIPE, HITS, **{"predicted_tokens": 10} | changes),
    ]
    with pytest.raises(RecipeError, match=message) as caught:
        compare(paths)
    assert [problem.path for problem in caught.value.problems] == [paths[1], "other_rows"]
    shown = compare(paths, other_rows=True)
    assert shown.tests == []
    assert len(shown.other_rows) == 1


def test_without_predictions_there_is_a_table_and_no_test(results):
    from pathlib import Path

    (Path(results[1]) / "predictions.jsonl").unlink()
    assert compare(results).tests == [f"{results[1]} has no predictions.jsonl here"]
    done = command(*results)
    assert done.returncode == 0
    assert "B: no test, since" in done.stdout


def test_rows_that_were_cut_differently_are_not_paired(tmp_path):
    paths = [write_classifier(tmp_path / "a", RECIPE, [1, 0])]
    paths.append(write_classifier(tmp_path / "b", RECIPE, [1, 0, 1, 0]))
    assert compare(paths).tests == ["the two cut their texts into different rows"]


def test_predictions_that_are_not_of_the_score_are_refused(results, tmp_path):
    file = tmp_path / "b" / "predictions.jsonl"
    file.write_text(file.read_text().replace('"values": [1]', '"values": [0.5]'))
    with pytest.raises(RecipeError, match=r"predictions\.jsonl has 827 bytes, not 811"):
        compare(results)
    write_manifest(tmp_path / "b")
    with pytest.raises(RecipeError, match=r"gives 0\.4\d+, but the score is 0\.8"):
        compare(results)


def test_a_recipe_that_was_changed_afterwards_is_refused(results, tmp_path):
    (tmp_path / "b" / "recipe.json").write_text(RECIPE.to_json())
    with pytest.raises(RecipeError, match=r"recipe\.json has"):
        compare(results)


def test_a_table_fits_80_columns(results):
    done = command(*results)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines[2:])) <= 80  # before them are the folders, as typed
    text = " ".join(done.stdout.split())
    assert "lora.r 8 (A), 16 (B)" in text
    assert "train.seed 42 (A), 7 (B)" in text
    assert "A 0.6000 0.2500 to 0.7500 0.5000 10 12" in text
    assert "B +0.2000 +0.0000 to +0.5000" in text


def test_many_results_with_long_names_fit_80_columns(tmp_path):
    paths = [
        write_classifier(
            tmp_path / f"result-{n}", replace(RECIPE, train=Train(learning_rate=10.0**-n)), HITS
        )
        for n in range(1, 8)
    ]
    done = command(*paths)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[7:])) <= 80
    assert "1e-07 (G)" in done.stdout


def test_json_is_printed_or_written(results, tmp_path):
    done = command(*results, "--json", "--out", tmp_path / "found.json")
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads(json.dumps(to_json(compare(results))))
    assert found["tests"][0]["difference"] == pytest.approx(0.2)
    assert [each["score"] for each in found["results"]] == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "compare takes two or more results, not 0."),
        (("a",), "compare takes two or more results, not 1."),
        (
            ("./a", "b"),
            "./a: has no recipe.json and no task.json: it is not the result of a recipe.",
        ),
        (("a", "b", "--out", "."), "--out: . is a folder, or in none. Give the path of a file."),
    ],
)
def test_wrong_input_ends_with_one_message(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    done = command(*words)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [message]


def test_comparing_imports_no_torch(results):
    code = "import sys; from pipelines.cli import console; console(); assert 'torch' not in "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.modules", "compare", *results], capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_runs_compare_on_their_test_rows_and_not_with_validation_scores(
    tasks, checkpoint, tmp_path
):
    from pipelines.flow import run
    from pipelines.hub.card import model_card

    task = tasks["text_classification"]
    recipe = Recipe(
        name="tested",
        task=replace(task, dataset=replace(task.dataset, test_fraction=0.25)),
        model=Model(name_or_path=str(checkpoint)),
        lora=Lora(r=2),
        train=Train(max_steps=2, learning_rate=1e-2),
        output_dir=str(tmp_path / "a"),
    )
    metrics = run(recipe)
    run(replace(recipe, lora=Lora(r=4), output_dir=str(tmp_path / "b")))
    validation = replace(recipe.task.dataset, scored_split="eval")
    other = replace(recipe, task=replace(recipe.task, dataset=validation))
    run(replace(other, output_dir=str(tmp_path / "c")))

    found = compare([str(tmp_path / "a"), str(tmp_path / "b")])
    references, values = found.results[0].rows
    num_test = found.results[0].sidecar["dataset"]["splits"]["test"]["rows"]
    assert len(references) == len(values) == metrics["rows"] == num_test
    assert values.mean() == pytest.approx(metrics["accuracy"], abs=1e-9)
    assert found.fields == {"lora.r": [2, 4]}
    sidecar = found.results[0].sidecar
    card = model_card(found.results[0].recipe, sidecar, "user/tested")
    assert f"SHA-256 <code>{sidecar['dataset']['test_rows_sha256']}</code>" in card
    with pytest.raises(RecipeError, match="was scored on other rows than"):
        compare([str(tmp_path / "a"), str(tmp_path / "c")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"recipe.json": 5}}, "task.json does not list the files of the result"),
        ({"metrics": {"loss": "low"}}, "loss"),
        ({"dataset": {"splits": {"reported": "train"}}}, "'train' is no split with rows"),
        ({"dataset": {"splits": {"reported": "test"}}}, "'test' is no split with rows"),
        ({"dataset": {"splits": {"eval": 5}}}, "dataset.splits.eval: is not an object"),
    ],
)
def test_a_task_json_that_somebody_else_wrote_is_refused_by_its_field(
    results, tmp_path, change, message
):
    file = tmp_path / "b" / "task.json"
    sidecar = json.loads(file.read_text())
    for name, value in change.items():
        sidecar[name] = value if name == "files" else sidecar[name] | value
    file.write_text(json.dumps(sidecar))
    with pytest.raises(RecipeError, match=message):
        compare(results)


def test_a_file_that_cannot_be_written_is_named(results, tmp_path):
    out = tmp_path / "found.json"
    out.with_name("found.json.tmp").mkdir()
    done = command(*results, "--out", out)
    assert done.returncode == 2
    assert done.stderr == f"--out: {out}: Is a directory.\n"
