"""Reports as pages: what is in them, what is not, and that texts of rows stay texts."""

import base64
import hashlib
import json
import subprocess
import sys

import pytest

from helpers.imported_modules import HEAVY
from helpers.reported_runs import RECIPE, read_page, write_lines, write_run
from pipelines.errors import RecipeError
from pipelines.html_report.write import write_comparison, write_report
from pipelines.results.files import FILES, files_of, find_result_damage, write_manifest
from pipelines.tasks.text_classification import TextClassification

HOSTILE = (
    "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>"
    '" onmouseover="alert(1)\' autofocus {{ 7 * 7 }} {% raw %} <!-- ]]> &lt; '
    "\u202egnp.exe \x00\x1b[31m שלום 👍🏽 " + "x" * 100_000
)


def report(*words, cwd=None):
    """Run `gpt2-recipes report`."""
    command = [sys.executable, "-m", "pipelines", "report", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def folder(tmp_path):
    """A finished run with all that a report shows."""
    return write_run(tmp_path / "run")


def test_the_outcome_comes_first_with_its_interval_rows_and_baseline(folder):
    page = read_page(write_report(folder))
    sections = [attributes["aria-labelledby"] for attributes in page.named("section")]
    assert sections[0] == "outcome-title"
    outcome = page.text("outcome")
    assert "accuracy 0.6000 95 % interval 0.2500 to 0.7500" in outcome
    assert "The model gives the right label for 60.0 % of the rows." in outcome
    assert "clearly better than the baseline (majority class), which has 0.1000" in outcome
    assert "Scored on 10 rows" in outcome
    assert "Validation rows are test" in outcome
    assert "caution text of row" in page.text("cautions")


@pytest.mark.parametrize(
    ("primary", "score", "baseline", "sentence"),
    [
        ("accuracy", 0.5, 0.5, "inside the interval: this score does not show"),
        ("accuracy", 0.5, 0.9, "clearly worse than the baseline"),
        ("perplexity", 0.5, 0.9, "clearly better than the baseline"),
        ("pearsonr", 0.5, 0.1, "correlate with the targets by 0.5000"),
        ("f1", 0.5, 0.1, "share 50.0 % of their words with the reference answers"),
        ("rougeL", 0.5, 0.1, "share 50.0 % of their words, in the same order"),
        ("reward_accuracy", 0.5, 0.1, "prefers the chosen reply to the rejected one in 50.0 %"),
        ("micro_f1", 0.5, 0.1, "agree to 50.0 % with the reference"),
        ("commas", 0.5, 0.1, "The primary metric of the task is commas."),
    ],
)
def test_the_score_is_told_in_a_plain_sentence(folder, primary, score, baseline, sentence):
    sidecar = json.loads((folder / "task.json").read_text())
    sidecar["metrics"] |= {"primary": primary, primary: score, "baseline": {"b": baseline}}
    (folder / "task.json").write_text(json.dumps(sidecar))
    assert sentence in read_page(write_report(folder)).text("outcome")


def test_curves_rows_samples_data_time_and_recipe_are_there(folder):
    page = read_page(write_report(folder))
    summaries = [svg["aria-label"] for svg in page.named("svg") if "aria-label" in svg]
    assert summaries[0].startswith(
        "Loss. training goes from 0.6 at step 10 to 0.3 at step 40; its lowest value is 0.3"
    )
    assert "evaluation goes from 0.7 at step 0 to 0.5 at step 40" in summaries[0]
    assert any(each.startswith("Tokens per second. ") for each in summaries)
    results = page.text("results")
    assert "spam 6 4 ham 0 0" in results  # the confusion matrix
    assert "spam 10 1.000 0.600 0.750 ham 0 0.000 0.000 0.000" in results
    rows = page.text("rows")
    assert rows.index("rows.jsonl:6 text of row Model ham") < rows.index("Best rows")
    assert "probability 0.900, of the reference 0.100" in rows
    assert "Before before text of row" in page.text("samples")
    assert "After after text of row" in page.text("samples")
    data = page.text("data")
    assert "training 4 rows, 1 rows cut 80 5 70 70" in data
    assert "text of row 3 (75.0 %)" in data
    assert "Half of the rows have at most 5 tokens" in data
    machine = page.text("machine")
    assert "reading 1.0 s 10.0 % training 9.0 s 90.0 %" in machine
    assert "git" not in machine  # there was no commit
    assert "lora.r 8" in page.text("recipe")
    assert "Left out" not in page.text("")


def test_how_texts_are_continued_is_said_of_tasks_that_write_texts(folder, monkeypatch):
    assert "Validation rows. " in read_page(write_report(folder)).text("samples")
    monkeypatch.setattr(TextClassification, "head", None)  # as of a language model
    shown = read_page(write_report(folder)).text("samples")
    assert "Validation rows; texts are continued by greedy search for at most 40 tokens." in shown


def test_what_a_result_lacks_is_left_out_and_said(folder):
    for name in ("metrics.jsonl", "samples.jsonl", "statistics.json", "predictions.jsonl"):
        (folder / name).unlink()
    page = read_page(write_report(folder))
    names = [attributes["aria-labelledby"] for attributes in page.named("section")]
    assert names == [f"{n}-title" for n in ("outcome", "commands", "results", "machine", "recipe")]
    left_out = "no metrics.jsonl, no predictions.jsonl, no samples.jsonl, no statistics.json"
    assert left_out in page.text("")
    targets = {link["href"].removeprefix("#") for link in page.named("a")}
    assert targets <= {section.get("id") for section in page.named("section")}


def test_files_of_another_run_that_has_begun_in_the_folder_are_left_out(folder):
    (folder / ".started").write_text("another run")
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    write_lines(folder / "samples.jsonl", [line | {"run": "another run"} for line in lines])
    page = read_page(write_report(folder))
    assert page.text("curves") == page.text("samples") == ""
    assert "Another run has begun in this folder" in page.text("")
    assert page.text("rows")  # predictions.jsonl is the result's
    (folder / ".started").write_text("run")  # this run, which is just ending
    assert read_page(write_report(folder)).text("curves")


def test_texts_of_rows_are_never_markup(tmp_path):
    folder = write_run(tmp_path / "run", texts=HOSTILE)
    file = write_report(folder)
    page, source = read_page(file), file.read_text(encoding="utf-8")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "iframe", "link", "object"})
    names = {name for _, attributes in page.tags for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    assert "autofocus" not in names
    for unseen in "\u202e\x00\x1b":
        assert unseen not in source
    assert "⟨U+202E⟩gnp.exe ⟨U+0000⟩⟨U+001B⟩[31m שלום 👍🏽" in page.text("samples")
    assert "{{ 7 * 7 }} {% raw %}" in page.text("samples")
    assert "more characters)" in page.text("rows")
    assert file.stat().st_size < 200_000  # each of the texts has 100 kB


def test_the_page_loads_nothing_and_allows_only_its_own_style(folder):
    source = write_report(folder).read_text(encoding="utf-8")
    page = read_page(folder / "report.html")
    (policy,) = [m["content"] for m in page.named("meta") if "http-equiv" in m]
    css = source.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert "url(" not in css
    assert "@import" not in css
    attributes = [(name, value) for _, each in page.tags for name, value in each.items()]
    assert not [v for name, v in attributes if name in ("src", "style", "srcset", "data")]
    assert all(link["href"].startswith("#") for link in page.named("a"))


def test_headings_tables_and_charts_are_named(folder):
    page = read_page(write_report(folder))
    headings = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(headings, headings[1:], strict=False))
    assert len(page.named("caption")) == len(page.named("table"))
    assert all("scope" in cell for cell in page.named("th"))
    for svg in page.named("svg"):
        assert svg.get("aria-hidden") or svg["aria-label"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_report_is_no_part_of_the_result(folder):
    before = {file.name for file in files_of(folder)}
    write_report(folder)
    assert {file.name for file in files_of(folder)} == before
    assert find_result_damage(folder) == []
    write_manifest_names = set(json.loads((folder / "task.json").read_text())["files"])
    assert "report.html" not in write_manifest_names
    assert "report.html" not in FILES


def test_runs_are_compared_on_one_page(tmp_path):
    first, second = (write_run(tmp_path / name) for name in "ab")
    recipe = json.loads((second / "recipe.json").read_text())
    recipe["train"]["seed"] = 7
    (second / "recipe.json").write_text(json.dumps(recipe))
    write_manifest(second)
    page = read_page(write_comparison([str(first), str(second)], tmp_path / "c.html"))
    scores = page.text("scores")
    assert f"A {first} accuracy 0.6000 0.2500 to 0.7500" in scores
    assert "B +0.0000 +0.0000 to +0.0000 1.0000 no clear difference" in scores
    assert "train.seed 42 7" in page.text("differs")
    summaries = [svg["aria-label"] for svg in page.named("svg") if "aria-label" in svg]
    assert summaries[0].startswith("Training loss. A goes from 0.6 at step 10")
    assert "B goes from 0.6 at step 10" in summaries[0]


def test_scores_of_other_rows_are_shown_without_a_test(tmp_path):
    first, second = (write_run(tmp_path / name) for name in "ab")
    sidecar = json.loads((second / "task.json").read_text())
    sidecar["dataset"]["eval_rows_sha256"] = "c" * 64
    (second / "task.json").write_text(json.dumps(sidecar))
    (second / "metrics.jsonl").unlink()
    page = read_page(write_comparison([str(first), str(second)], tmp_path / "c.html"))
    assert "The scores are not comparable" in page.text("scores")
    assert "was scored on other rows" in page.text("scores")
    assert f"no metrics.jsonl of the run: {second}" in page.text("")


def test_the_command_writes_into_the_folder_or_to_a_file(folder, tmp_path):
    done = report("run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "run/report.html\n"), done.stderr
    done = report("run", "--out", "page.html", cwd=tmp_path)
    assert done.stdout == "page.html\n"
    done = report("run", "run", cwd=tmp_path)
    assert done.stdout == "comparison.html\n"
    assert all((tmp_path / name).is_file() for name in ("page.html", "comparison.html"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "report takes the FOLDER of a run, or several to compare."),
        (("nowhere",), "nowhere: is not a folder. Give the folder of a run."),
        ((".",), ".: has no recipe.json and no task.json: it is not the result of a recipe."),
        (("run", "user/name"), "user/name: is not a folder. Give the folder of a run."),
        (("run", "--out", "."), "--out: . is a folder, or in none. Give the path of a file."),
        (("run", "--out", "no/page.html"), "--out: no/page.html is a folder, or in none."),
    ],
)
def test_wrong_words_end_in_one_message(folder, tmp_path, words, message):
    done = report(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "statistics.json"])
def test_a_damaged_file_is_named(folder, name):
    (folder / name).write_text('{"step": 1\n')
    with pytest.raises(RecipeError, match=f"{name}:1 is not a JSON object. Delete the file"):
        write_report(folder)


def test_predictions_that_have_changed_are_refused(folder):
    (folder / "predictions.jsonl").write_text("")
    with pytest.raises(RecipeError, match=r"predictions.jsonl has 0 bytes"):
        write_report(folder)


def test_a_report_imports_no_torch(folder):
    script = "import sys; from pipelines.html_report.write import write_report; "
    script += "write_report(sys.argv[1]); print([n for n in sys.argv[2:] if n in sys.modules])"
    command = [sys.executable, "-c", script, str(folder), *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_result_of_this_name_is_written_by_a_recipe_without_an_adapter(tmp_path):
    from dataclasses import replace

    folder = write_run(tmp_path / "run", replace(RECIPE, lora=None))
    page = read_page(write_report(folder))
    assert "all weights trained" in page.text("")
    assert "gpt2-recipes merge" not in page.text("commands")
