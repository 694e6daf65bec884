"""The list of the shipped recipes, and a recipe that is shown."""

import json
import re
import subprocess
import sys

import pytest

from helpers.factories import ROOT
from pipelines.errors import RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe_list import describe, first_line, print_list, scores_file
from pipelines.recipe_show import show
from pipelines.shipped import find_file, shipped_files
from pipelines.train import load_recipe

SCORES = json.loads(scores_file().read_text(encoding="utf-8"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder without data and runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_shipped_recipe_is_listed(elsewhere, capsys):
    print_list(as_json=True)
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed.keys() == shipped_files("recipes").keys()
    assert listed["gpt2_large_sst2_lora_8bit"] == {
        "name": "gpt2_large_sst2_lora_8bit",
        "task": "classify",
        "method": "lora-8bit",
        "model": "openai-community/gpt2-large",
        "data": "nyu-mll/glue sst2",
        "needs": ["network", "GPU"],
        "measured": None,
    }
    assert listed["helpdesk_classify_lora_8bit"]["needs"] == [
        "data/helpdesk/classify",
        "runs/helpdesk-pretrain",
        "CPU",
    ]


def test_a_pipe_gets_a_line_for_each_recipe(elsewhere, capsys):
    print_list(as_json=False)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == list(shipped_files("recipes"))
    assert {len(line) for line in lines} == {7}


def test_the_first_lines_of_the_table_fit_80_columns():
    recipes = {name: load_recipe(file) for name, file in shipped_files("recipes").items()}
    rows = [first_line(describe(n, each, SCORES.get(n))) for n, each in recipes.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80


def test_the_score_of_a_run_here_comes_before_the_recorded_one(elsewhere):
    recipe = load_recipe(shipped_files("recipes")["trec_classify_scratch"])
    before = describe("trec_classify_scratch", recipe, SCORES["trec_classify_scratch"])
    assert (before.measured.score, before.measured.source) == (0.858, "docs/scores.md")
    recipe.folder.mkdir(parents=True)
    metrics = {"primary": "accuracy", "accuracy": 0.9, "rows": 500}
    sidecar = {"files": {"recipe.json": {"size": 0, "sha256": "0" * 64}}, "metrics": metrics}
    (recipe.folder / "task.json").write_text(json.dumps(sidecar), encoding="utf-8")
    here = describe("trec_classify_scratch", recipe, SCORES["trec_classify_scratch"])
    assert (here.measured.score, here.measured.source) == (0.9, "runs/trec-classify-scratch")
    (recipe.folder / "task.json").write_text("{", encoding="utf-8")
    with pytest.raises(RecipeError, match="runs/trec-classify-scratch: task.json is damaged."):
        describe("trec_classify_scratch", recipe, None)


@pytest.mark.parametrize("name", SCORES)
def test_a_recorded_score_is_that_of_the_documents(name):
    assert name in shipped_files("recipes")
    pages = (ROOT / "docs" / "getting-started.md", ROOT / "docs" / "scores.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    score = SCORES[name]["score"]
    shown = {f"{score:.4f}", f"{score:g}", f"{score:.3f}"}
    shown |= {f"{round(score * 250)} of 250"} if SCORES[name].get("rows") == 250 else set()
    assert any(re.search(rf"(?<![\d.]){re.escape(each)}(?![\d])", text) for each in shown)


def test_a_recipe_is_shown_with_its_flags(capsys):
    show("helpdesk_pretrain", ["--train.seed", "7"], as_json=False)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "seed=7,  # default: 42" in lines
    assert "save_steps=500," in lines


def test_a_recipe_is_shown_as_the_file_that_rebuilds_it(tmp_path, capsys):
    show("helpdesk_pretrain", ["--name", "other"], as_json=True)
    text = capsys.readouterr().out
    recipe = Recipe.from_json(text)
    assert recipe.name == "other"
    (tmp_path / "recipe.json").write_text(text, encoding="utf-8")
    assert load_recipe(find_file(tmp_path, "recipes", field="RECIPE")) == recipe


def test_a_wrong_flag_of_a_shown_recipe_is_refused():
    with pytest.raises(RecipeError, match=r"Did you mean --train.learning-rate\?"):
        show("helpdesk_pretrain", ["--lr", "1"], as_json=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nwes.py", "no file and no shipped recipe. Did you mean my_news.py?"),
        ("my_news", "Did you mean my_news.py?"),
        ("helpdesk-pretrian", "Did you mean helpdesk_pretrain?"),
        ("void", "is a folder without a recipe.json: no run has finished there."),
    ],
)
def test_a_wrong_name_of_a_recipe_suggests_the_nearest(elsewhere, name, message):
    (elsewhere / "my_news.py").touch()
    (elsewhere / "void").mkdir()
    with pytest.raises(RecipeError) as caught:
        find_file(name, "recipes", field="RECIPE")
    assert message in str(caught.value)


@pytest.mark.parametrize("verb", ["list", "show"])
def test_the_verbs_import_no_torch(elsewhere, verb):
    program = "import sys; from pipelines.cli import console; console(); assert 'torch' not in "
    words = [verb, *(["helpdesk_pretrain"] if verb == "show" else [])]
    command = [sys.executable, "-c", program + "sys.modules", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
