"""A recipe for data of one's own: what is guessed, asked for and written."""

import csv
import json
import resource
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from helpers.factories import METHODS, ROOT
from pipelines.errors import DataError, RecipeError
from pipelines.recipe.values import Int8, Lora, Scratch
from pipelines.scaffold.base_model import estimate_tokens
from pipelines.scaffold.flags import NewFlags
from pipelines.scaffold.new import guessed, new, source_of
from pipelines.shipped import shipped_files
from pipelines.terminal import as_typed
from pipelines.train import load_recipe

NAMES = {"full": "full", "lora": "lora", "8bit": "lora-8bit", "4bit": "lora-4bit"}
WORDS = ["lamp", "desk", "chair", "table", "shelf", "door", "window", "carpet"]


def text(i, num_words=6):
    """Return a text of a number of short words, another one for each row."""
    return " ".join(WORDS[(i + k * (i % 5 + 1)) % 8] for k in range(num_words)) + f" {i}"


def write_csv(folder, name, header, rows):
    """Write a CSV file, and return its path as a text."""
    file = folder / name
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(file)


def write_rows(folder, name, rows):
    """Write JSON lines, and return the path as a text."""
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def data_of(task, folder):
    """Return the path of data that a task fits."""
    match task:
        case "pretrain":
            rows = [{"text": text(i, 40)} for i in range(100)]
        case "classify":
            rows = [{"text": text(i), "label": "abc"[i % 3]} for i in range(60)]
        case "answer":
            answers = [{"text": ["desk"], "answer_start": [2]}, {"text": [], "answer_start": []}]
            rows = [
                {"question": f"What {i}?", "context": "A desk.", "answers": answers[i % 3 == 0]}
                for i in range(60)
            ]
        case "instruct":
            rows = [{"prompt": text(i), "completion": text(i + 1)} for i in range(60)]
        case _:
            rows = [
                {"prompt": text(i), "chosen": text(i + 1), "rejected": text(i + 2)}
                for i in range(60)
            ]
    return write_rows(folder, f"{task}.jsonl", rows)


def guess(data, **flags):
    """Return the recipe that is guessed for data, and the lines of the guesses by subject."""
    recipe, _, guesses = guessed("a", NewFlags(data=data, **flags))
    return recipe, {each.subject: str(each) for each in guesses}


TASKS = ("pretrain", "classify", "answer", "instruct", "prefer")
CASES = [(t, NAMES[m]) for t in TASKS for m in METHODS if (t, m) != ("prefer", "full")]
CASES += [(t, "scratch:tiny") for t in TASKS if t != "prefer"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The recipes of every task and method as values, with the files that were written of them."""
    folder = tmp_path_factory.mktemp("written")
    made = {}
    for task, method in CASES:
        flags = {"method": method} if ":" not in method else {"model": method}
        recipe, _ = guess(data_of(task, folder), **flags)
        file = folder / f"{task}_{method.replace(':', '_').replace('-', '_')}.py"
        file.write_text(source_of(recipe, "A title.", file), encoding="utf-8")
        made[task, method] = recipe, file
    return made


@pytest.mark.parametrize(("task", "method"), CASES)
def test_a_written_recipe_is_the_value_it_was_made_from(written, task, method):
    recipe, file = written[task, method]
    assert load_recipe(file) == recipe
    assert len(file.read_text().splitlines()) < 50


def test_written_recipes_are_clean_for_ruff(written):
    files = [file for _, file in written.values()]
    for words in (["format", "--check"], ["check"]):
        command = [sys.executable, "-m", "ruff", *words, "--config", str(ROOT / "pyproject.toml")]
        ignored = [] if words[0] == "format" else ["--ignore", "D"]
        done = subprocess.run([*command, *ignored, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_task_is_guessed_from_the_columns(written):
    kinds = {task: type(written[task, "lora"][0].task).__name__ for task in TASKS}
    assert kinds == {
        "pretrain": "CausalLM",
        "classify": "TextClassification",
        "answer": "QuestionAnswering",
        "instruct": "InstructionTuning",
        "prefer": "PreferenceTuning",
    }
    assert written["answer", "lora"][0].task.version_2_with_negative


def test_a_method_and_a_model_are_written(written):
    recipe, _ = written["classify", "lora-8bit"]
    assert (recipe.quantization, recipe.lora) == (Int8(), Lora())
    recipe, _ = written["pretrain", "scratch:tiny"]
    assert isinstance(recipe.model, Scratch)
    assert recipe.lora is None
    # 100 documents of 40 words of one token, a number of 1 token, and 2 tokens that end a row:
    # 4,300 tokens fill 67 rows of 64, and 33 of 128, fewer than the 50 that are wanted
    assert recipe.task.block_size == 64


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        (("id", "sms", "v1"), lambda i: (i, text(i), "ab"[i % 2]), {"label_column": "v1"}),
        (("review", "stars"), lambda i: (text(i), i % 5 + 1), {"label_column": "stars"}),
        (
            ("text", "score"),
            lambda i: (text(i), i / 7),
            {"problem_type": "regression", "label_column": "score"},
        ),
        (
            ("text", "rating"),
            lambda i: (text(i), i),
            {"problem_type": "regression", "label_column": "rating"},
        ),
        (
            ("text", "tags"),
            lambda i: (text(i), ("red;blue", "red", "blue;green", "green")[i % 4]),
            {"problem_type": "multi_label_classification", "label_separator": ";"},
        ),
        (
            ("id", "text", "toxic", "threat"),
            lambda i: (i, text(i), i % 2, int(i % 3 == 0)),
            {"problem_type": "multi_label_classification", "label_columns": ("toxic", "threat")},
        ),
        (
            ("premise", "hypothesis", "label"),
            lambda i: (text(i), text(i + 1), "yn"[i % 2]),
            {"text_column": "premise", "text_pair_column": "hypothesis"},
        ),
        (
            ("text", "label"),
            lambda i: (text(i), "spam" if i % 20 == 0 else "ham"),  # 5 against 95 of 100
            {"class_weights": "balanced"},
        ),
        (
            ("text", "label"),
            lambda i: (text(i), "spam" if i % 5 == 0 else "ham"),  # 20 against 80
            {"class_weights": None},
        ),
    ],
)
def test_labels_are_guessed_from_their_cells(tmp_path, header, row, expected):
    data = write_csv(tmp_path, "a.csv", header, [row(i) for i in range(100)])
    recipe, _ = guess(data)
    assert {name: getattr(recipe.task, name) for name in expected} == expected


def test_the_length_is_that_of_99_rows_of_100_and_fits_the_model(tmp_path):
    rows = [(text(i, 20), "ab"[i % 2]) for i in range(99)] + [(text(99, 90), "b")]
    data = write_csv(tmp_path, "a.csv", ("text", "label"), rows)
    recipe, lines = guess(data)
    # 20 words and a number of one token each, and 2 that end a row: 23, the next multiple of 8
    assert recipe.task.max_length == 24
    assert "99 % of the rows have at most 23 tokens" in lines["max_length"]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"n_positions": 20, "n_embd": 32}))
    recipe, lines = guess(data, model=str(model))
    assert recipe.task.max_length == 20
    assert "100% of the rows are longer, the longest 93" in lines["max_length"]


def test_tokens_are_estimated_by_words_and_bytes():
    # 12 letters are 3 tokens of at most 5, 4 digits 2 of at most 3, and 6 bytes 3 of 2
    assert estimate_tokens(["It is a tokenisation-free 2026."]) == [1 + 1 + 1 + 3 + 1 + 1 + 2 + 1]
    assert estimate_tokens(["书本"]) == [3]
    assert estimate_tokens([""]) == [0]


def test_the_files_of_a_folder_are_its_splits(tmp_path):
    for name in ("train", "dev", "test"):
        write_csv(tmp_path, f"{name}.csv", ("text", "label"), [("a b", "x"), ("b c", "y")] * 20)
    source = guess(str(tmp_path))[0].task.dataset
    assert (source.train_split, source.eval_split, source.test_split) == ("train", "dev", "test")
    (tmp_path / "dev.csv").unlink()
    source = guess(str(tmp_path))[0].task.dataset
    assert (source.eval_split, source.test_split) == (None, "test")


def test_a_folder_with_one_file_is_that_file(tmp_path):
    write_csv(tmp_path, "all.csv", ("text", "label"), [("a b", "x"), ("b c", "y")] * 20)
    assert guess(str(tmp_path))[0].task.dataset.path == str(tmp_path / "all.csv")


def test_chats_are_read_as_chats(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    data = write_rows(tmp_path, "a.jsonl", [{"messages": turns}] * 50)
    task = guess(data)[0].task
    assert (task.chat, task.completion_column) == (True, "messages")


def test_hub_data_with_all_columns_given_are_not_read():
    flags = {"task": "classify", "text_column": "sentence", "label_column": "label"}
    recipe, lines = guess("nyu-mll/glue", data_name="sst2", **flags)
    assert (recipe.task.dataset.path, recipe.task.dataset.name) == ("nyu-mll/glue", "sst2")
    assert "not read" in lines["data"]


PLAIN = [(text(i), "ab"[i % 2]) for i in range(40)]
TWO_TEXTS = [(text(i), text(i + 1), "ab"[i % 2]) for i in range(40)]
MISTAKES = {
    "a column that is not there": (
        (("text", "label"), PLAIN),
        {"text_column": "txet"},
        "--text-column: no column 'txet' (did you mean 'text'?). Columns: text, label.",
    ),
    "two texts": (
        (("title", "body", "label"), TWO_TEXTS),
        {},
        "--text-column: 'body' and 'title' can each be the text. Say which: --text-column body.",
    ),
    "two labels": (
        (("text", "topic", "sentiment"), [(text(i), "ab"[i % 2], "cd"[i % 2]) for i in range(9)]),
        {},
        "--label-column: 'topic' and 'sentiment' can each be the label. Say which: "
        "--label-column topic.",
    ),
    "answers in two columns": (
        (
            ("question", "context", "answer_text", "answer_start"),
            [(text(i), text(i + 1), "ab"[i % 2], i) for i in range(9)],
        ),
        {},
        "--task: column 'answer_start' holds where answers start in their contexts. Put it and",
    ),
    "answers by the name of replies, and their starts": (
        (
            ("question", "passage", "answer", "start"),
            [(text(i), text(i + 1), text(i + 2), i) for i in range(9)],
        ),
        {},
        "--task: column 'start' holds where answers start in their contexts. Put it and",
    ),
    "one column, to be classified": (
        (("text",), [(text(i),) for i in range(9)]),
        {"task": "classify"},
        "--label-column: no column can be the label: . Name one in spite of that",
    ),
    "texts of numbers": (
        (("text", "label"), [(i / 7, "ab"[i % 2]) for i in range(9)]),
        {},
        "--task: no task fits the columns: 'text' holds numbers, such as 0.0;",
    ),
    "all weights by DPO": (
        (("prompt", "chosen", "rejected"), [(text(i), text(i + 1), text(i + 2)) for i in range(9)]),
        {"method": "full"},
        "--method: full: DPO compares with the base without the adapter. Use --method lora.",
    ),
    "random weights by DPO": (
        (("prompt", "chosen", "rejected"), [(text(i), text(i + 1), text(i + 2)) for i in range(9)]),
        {"model": "scratch:tiny"},
        "--model: scratch:tiny: DPO tunes a pretrained model. Name its folder or Hub id.",
    ),
    "an adapter of random weights": (
        (("text", "label"), PLAIN),
        {"model": "scratch:tiny", "method": "lora"},
        "--method: lora: an adapter needs pretrained weights. Use --method full.",
    ),
    "a size that is none": (
        (("text", "label"), PLAIN),
        {"model": "scratch:smal"},
        "--model: scratch:smal: Did you mean scratch:small? Sizes: tiny, mini, small,",
    ),
    "a model that is nowhere": (
        (("text", "label"), PLAIN),
        {"model": "runs/nowhere"},
        "--model: runs/nowhere: neither a folder nor a Hub id.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_the_flag_and_the_fix(tmp_path, mistake):
    (header, rows), flags, message = MISTAKES[mistake]
    data = write_csv(tmp_path, "a.csv", header, rows)
    with pytest.raises(RecipeError) as caught:
        guess(data, **flags)
    (problem,) = caught.value.problems
    assert as_typed(problem).startswith(message)


def test_rows_that_cannot_be_learned_are_told(tmp_path):
    one = write_csv(tmp_path, "one.csv", ("text", "label"), [(text(i), "x") for i in range(9)])
    with pytest.raises(DataError, match="holds one label, x; a classifier needs two"):
        guess(one)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="empty.csv: no rows"):
        guess(str(tmp_path / "empty.csv"))
    short = write_rows(tmp_path, "short.jsonl", [{"text": "a b"}] * 2)
    with pytest.raises(DataError, match="about 8 tokens are too few"):  # 2 words and 2, twice
        guess(short)


def test_what_holds_no_rows_is_told(tmp_path):
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match=r"no file with rows \(nothing there\)"):
        guess(str(tmp_path / "void"))
    for name, told in (("a.xlsx", "an Excel workbook"), ("a.zip", "a zip archive; unpack it")):
        inside = "xl/workbook.xml" if name == "a.xlsx" else "a.csv"
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(inside, "text,label\na,b\n")
        with pytest.raises(DataError, match=told):
            guess(str(tmp_path / name))


def test_a_wrong_path_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path, "news.csv", ("text", "label"), PLAIN)
    with pytest.raises(RecipeError, match="nwes.csv: no such file or folder. Did you mean news"):
        guess("nwes.csv")
    with pytest.raises(RecipeError, match="A Hub id has the form USER/NAME"):
        guess("zzz")


def test_a_bad_row_is_a_caution(tmp_path):
    data = write_csv(tmp_path, "a.csv", ("text", "label"), [*PLAIN, (text(1), "")])
    _, lines = guess(data)
    assert "1 rows stop the run" in lines["caution"]
    assert "a.csv:42: no value in column 'label'" in lines["caution"]


def test_a_file_is_written_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = write_csv(tmp_path, "news.csv", ("text", "label"), PLAIN)
    new("my_news", NewFlags(data=data))
    assert capsys.readouterr().out.endswith("    gpt2-recipes run my_news.py\n")
    assert load_recipe(tmp_path / "my_news.py").name == "my-news"
    with pytest.raises(RecipeError, match="my_news.py exists. Choose another name, or replace"):
        new("my_news", NewFlags(data=data))
    new("my_news", NewFlags(data=data, overwrite=True))
    with pytest.raises(RecipeError, match="NAME: 'a/b' names no folder of a run"):
        new("a/b", NewFlags(data=data))


@pytest.mark.parametrize("name", sorted(shipped_files("recipes")))
def test_a_copy_of_a_recipe_has_another_name_and_nothing_else(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    new("mine", NewFlags(source=name))
    copy, original = load_recipe(tmp_path / "mine.py"), load_recipe(shipped_files("recipes")[name])
    assert copy == replace(original, name="mine")


def test_a_copy_with_other_data_and_another_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_csv(tmp_path, "a.csv", ("sentence", "label"), PLAIN)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"n_positions": 64, "n_embd": 32}))
    flags = NewFlags(source="gpt2_sst2_lora_8bit", data=data, model=str(model))
    new("mine", flags)
    recipe = load_recipe(tmp_path / "mine.py")
    assert (recipe.task.dataset.path, recipe.task.dataset.name) == (data, None)
    assert recipe.task.dataset.eval_split is None
    assert (recipe.model.name_or_path, recipe.task.max_length) == (str(model), 64)
    wrong = write_csv(tmp_path, "b.csv", ("text", "label"), PLAIN)
    with pytest.raises(DataError, match="b.csv: no column 'sentence', which the recipe names"):
        new("other", NewFlags(source="gpt2_sst2_lora_8bit", data=wrong))


def test_new_takes_two_seconds_and_imports_no_torch(tmp_path):
    data = write_csv(tmp_path, "a.csv", ("text", "label"), PLAIN * 250)  # 10,000 rows
    program = "import sys; from pipelines.cli import console; console(); assert 'torch' not in "
    words = ["-c", program + "sys.modules", "new", "mine", "--data", data]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_a_written_recipe_trains(tmp_path, monkeypatch, checkpoint):
    from pipelines.flow import run

    monkeypatch.chdir(tmp_path)
    data = write_csv(tmp_path, "a.csv", ("text", "label"), PLAIN)
    new("mine", NewFlags(data=data, model=str(checkpoint), method="lora-8bit"))
    recipe = load_recipe(tmp_path / "mine.py")
    metrics = run(replace(recipe, train=replace(recipe.train, max_steps=2)))
    assert metrics["rows"] == 4  # a tenth of 40
    assert (tmp_path / "runs" / "mine" / "task.json").is_file()
