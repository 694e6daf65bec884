"""What a user types, right and wrong."""

import json
import os
import resource
import subprocess
import sys
import time
import tomllib

import pytest

from helpers.factories import ROOT, load_module
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Int8, Lora, Model, Scratch, Tokenizer, Train
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.text_classification import TextClassification

RECIPES = sorted((ROOT / "recipes").glob("*.py"))
ANYWHERE = DatasetSource(path="nowhere")
CLASSIFY = TextClassification(dataset=ANYWHERE)

VERBS = ("train", "evaluate", "predict", "generate", "merge", "publish", "lm-eval", "hub")
VERBS += ("selftest", "compare", "repeat", "train helpdesk_pretrain", "repeat helpdesk_pretrain")
VERBS += ("search", "search helpdesk_pretrain", "new", "list", "show", "run", "completion")
VERBS += ("doctor", "chat", "demo", "run helpdesk_pretrain", "show helpdesk_pretrain")


def help_in_a_second(*words):
    """Return the help of a command, which imports nothing heavy and takes less than a second.

    It is a second of processor time, which other processes do not lengthen.
    """
    script = ROOT / "tests" / "helpers" / "show_help.py"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    return done.stdout


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_help_imports_no_torch_and_takes_under_a_second(path):
    assert "--train.learning-rate" in help_in_a_second(path)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_imports_no_torch_and_takes_under_a_second(verb):
    assert verb in help_in_a_second(*verb.split())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_value_that_travels_as_json(path):
    recipe = load_module(path).RECIPE
    assert recipe.name == path.stem.replace("_", "-")
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert len(path.read_text().splitlines()) < 50


def test_all_problems_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        Recipe(
            name="a",
            task=CLASSIFY,
            model=Model(name_or_path="gpt2"),
            quantization=Int8(),
            train=Train(
                learning_rate=-1.0,
                lr_scheduler_type="cosin",
                global_batch_size=0,
                num_train_epochs=float("nan"),
            ),
        )
    said = {problem.path: problem.message for problem in caught.value.problems}
    assert "-1.0 is out of range; it must be above 0" in said["train.learning_rate"]
    assert "did you mean cosine?" in said["train.lr_scheduler_type"]
    assert "at least 1" in said["train.global_batch_size"]
    assert "nan is out of range" in said["train.num_train_epochs"]
    assert "Add lora=Lora()" in said["quantization"]


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"model": Scratch(size="tiny"), "lora": Lora()}, "lora"),
        ({"model": Scratch(size="tiny", n_embd=30, n_head=4)}, "model.n_embd"),
        ({"model": Scratch(size="tiny", n_positions=64)}, "task.max_length"),
        (
            {
                "model": Scratch(size="tiny", tokenizer=Tokenizer()),
                "task": CausalLM(dataset=DatasetSource(path="x", streaming=True), block_size=16),
            },
            "model.tokenizer",
        ),
    ],
)
def test_combinations_that_cannot_run_are_refused(parts, field):
    with pytest.raises(RecipeError) as caught:
        Recipe(**({"name": "a", "task": CLASSIFY} | parts))
    assert field in [problem.path for problem in caught.value.problems]


def test_json_with_unknown_keys_and_types_is_refused():
    recipe = Recipe(name="a", task=CLASSIFY, model=Model(name_or_path="b"))
    value = json.loads(recipe.to_json())
    value["train"]["learning_rat"] = 1
    value["task"]["type"] = "TextClasification"
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(json.dumps(value))
    said = {problem.path: problem.message for problem in caught.value.problems}
    assert "did you mean learning_rate?" in said["train.learning_rat"]
    assert "did you mean TextClassification?" in said["task.type"]


NOT_RECIPES = {
    "": ["recipe.json: is not JSON: Expecting value: line 1 column 1"],
    "[]": ["recipe.json: [] is not an object."],
    "[" * 100_000: ["recipe.json: is not JSON: maximum recursion depth exceeded"],
    '{"type": "Recipe", "name": "a", "name": "../b", "output_dir": 5, "push_to": true}': [
        "--name: is duplicated.",
        "--output-dir: 5 is not allowed; it takes str or NoneType.",
        "--push-to: True is not allowed; it takes str or NoneType.",
        "--task: is missing.",
        "--model: is missing.",
    ],
}


@pytest.mark.parametrize("text", NOT_RECIPES, ids=lambda text: text[:20])
def test_a_file_that_is_no_recipe_is_told_in_two_seconds(text, tmp_path):
    (tmp_path / "recipe.json").write_text(text)
    seconds = []
    for verb in ("evaluate", "publish"):
        words = [verb, str(tmp_path), *["me/x"] * (verb == "publish")]
        command = [sys.executable, "-m", "pipelines", *words]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 2
        found = done.stderr.splitlines()
        for line, said in zip(found, NOT_RECIPES[text], strict=True):
            assert line.startswith(said)
    assert min(seconds) < 2


def test_wrong_values_and_unknown_keys_are_told_together():
    value = json.loads(Recipe(name="a", task=CLASSIFY, model=Model(name_or_path="b")).to_json())
    value["train"] |= {"seeed": 1, "learning_rate": "fast", "max_steps": 1.5, "save_steps": True}
    value["allow_changed"] = ["a", 1]
    value["tain"] = {}
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(json.dumps(value))
    assert sorted(problem.path for problem in caught.value.problems) == [
        "allow_changed",
        "tain",
        "train.learning_rate",
        "train.max_steps",
        "train.save_steps",
        "train.seeed",
    ]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a\n", "a b"])
def test_a_name_that_is_no_plain_folder_is_refused(name):
    with pytest.raises(RecipeError, match="names no folder"):
        Recipe(name=name, task=CLASSIFY, model=Model(name_or_path="b"))


def test_an_accelerate_config_runs_no_code(tmp_path):
    config = tmp_path / "config.yaml"
    canary = tmp_path / "canary"
    config.write_text(f"num_processes: !!python/object/apply:os.system ['touch {canary}']\n")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(config))
    done = run_recipe("helpdesk_pretrain", launcher=launcher)
    assert done.returncode != 0
    assert f'in "{config}", line 1' in done.stderr
    assert not canary.exists()


def run_recipe(name, *arguments, launcher=(), env=None):
    """Run a recipe as a user does."""
    command = [sys.executable, *launcher, str(ROOT / "recipes" / f"{name}.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | (env or {}), timeout=120
    )


def test_wrong_values_on_the_command_line_name_the_flag():
    done = run_recipe("helpdesk_classify_lora_8bit", "--train.learning-rate", "50", "--lora.r", "0")
    assert done.returncode == 2
    assert "--train.learning-rate: 50.0 is out of range; it must be below 10" in done.stderr
    assert "--lora.r: 0 is out of range; it must be at least 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_flag_names_the_nearest():
    done = run_recipe("helpdesk_classify_lora_8bit", "--train.learning-rat", "1e-3")
    assert done.returncode == 2
    assert "--train.learning-rate" in done.stderr + done.stdout


def test_a_missing_file_is_told_without_a_trace(commands, tmp_path):
    recipe = ROOT / "recipes" / "helpdesk_pretrain.py"
    words = ("python", recipe, "--task.dataset.path", "no/such/folder")
    said = commands.printed(*words, cwd=tmp_path, code=3)
    assert said.strip().endswith("no/such/folder: no such file or folder.")


def test_a_model_that_is_nowhere_is_told_without_a_trace(helpdesk, commands, tmp_path):
    recipe = ROOT / "recipes" / "helpdesk_classify_lora_8bit.py"
    words = ("python", recipe, "--task.dataset.path", helpdesk / "classify")
    words += ("--model.name-or-path", "runs/nowhere")
    said = commands.printed(*words, cwd=tmp_path, code=2)
    assert "--model.name-or-path: 'runs/nowhere' is not a folder" in said


def test_a_launcher_that_starts_fewer_processes_is_refused(helpdesk):
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    done = run_recipe(
        "helpdesk_pretrain",
        "--task.dataset.path",
        str(helpdesk / "documents"),
        launcher=launcher,
    )
    assert done.returncode != 0
    assert "2 processes were requested, 1 started" in done.stderr


def test_a_global_batch_that_cannot_be_shared_names_sizes_that_can():
    from pipelines.training.arguments import split_batch

    with pytest.raises(RecipeError, match="9 rows cannot be shared by 2 processes; 8 or 10"):
        split_batch(Train(global_batch_size=9), 2)


# Rows


def write(folder, name, lines):
    """Write a file of lines."""
    file = folder / name
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def features(task, file, tokenizer, labels=None):
    """Encode a file's rows."""
    from pipelines.data.load import read_file

    rows = read_file(file)
    return task.features(
        rows, tokenizer, task.labels(rows) if labels is None else labels, training=True
    )


def test_broken_files_name_the_line(tmp_path):
    from pipelines.data.load import read_file

    good = json.dumps({"text": "a", "label": "x"})
    for name, lines, said in [
        ("a.jsonl", [good, "", "{not json"], r"a.jsonl:3: not JSON"),
        ("b.jsonl", [good, "[1]"], r"b.jsonl:2: '\[1\]' is not an object"),
        ("c.csv", ["text,label", "a,b", "only"], r"c.csv:3: 1 cells, but the header has 2"),
        ("d.jsonl", [""], r"d.jsonl: no rows"),
        ("e.json", ['{"data": 1}'], r"e.json: not SQuAD JSON"),
    ]:
        with pytest.raises(DataError, match=said):
            read_file(write(tmp_path, name, lines))
    (tmp_path / "f.txt").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="f.txt:1: not UTF-8: byte 0xff"):
        read_file(tmp_path / "f.txt")


def test_csv_keeps_na_and_null_as_text(tmp_path):
    from pipelines.data.load import read_file

    file = write(tmp_path, "a.csv", ["text,label", "NA,null", '"a, b",c'])
    assert read_file(file).rows == [
        {"text": "NA", "label": "null"},
        {"text": "a, b", "label": "c"},
    ]


def test_rows_that_cannot_be_used_name_file_and_line(tmp_path, tokenizer):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"txt": "c", "label": "x"}]
    file = write(tmp_path, "a.jsonl", [json.dumps(row) for row in rows])
    with pytest.raises(DataError, match=r"a.jsonl:3: column 'text' holds None.*Columns: txt"):
        features(CLASSIFY, file, tokenizer)
    file = write(tmp_path, "b.jsonl", [json.dumps(row) for row in rows[:2]])
    with pytest.raises(DataError, match=r"b.jsonl:2: label 'y' does not occur.*Known labels: x"):
        features(CLASSIFY, file, tokenizer, labels=("x", "z"))
    file = write(tmp_path, "c.jsonl", [json.dumps({"text": "a"})])
    with pytest.raises(DataError, match=r"c.jsonl:1: no value in column 'label'"):
        features(CLASSIFY, file, tokenizer)
    file = write(tmp_path, "d.jsonl", [json.dumps(rows[0])])
    with pytest.raises(DataError, match="holds one label, x; a classifier needs two"):
        features(CLASSIFY, file, tokenizer)


def test_questions_that_cannot_be_used_name_file_and_line(tmp_path, tokenizer):
    from pipelines.tasks.question_answering import QuestionAnswering

    task = QuestionAnswering(dataset=ANYWHERE)
    good = {"question": "q", "context": "ab", "answers": {"text": ["b"], "answer_start": [1]}}
    for change, said in [
        ({"context": ""}, "column 'context' holds ''"),
        ({"answers": {"text": ["b"], "answer_start": [0]}}, "'b' is not at character 0"),
        ({"answers": {"text": [], "answer_start": []}}, "use --task.version-2-with-negative"),
        ({"answers": "b"}, "column 'answers' holds 'b'"),
    ]:
        file = write(tmp_path, "a.jsonl", [json.dumps(good), json.dumps(good | change)])
        with pytest.raises(DataError, match=f"a.jsonl:2: .*{said}"):
            features(task, file, tokenizer)


def test_a_token_beyond_the_vocabulary_names_the_row(tokenizer):
    from pipelines.data.rows import Examples
    from pipelines.models.tokenizer_checks import check_vocabulary
    from pipelines.tasks.text_classification import TextClassification

    task = TextClassification(dataset=ANYWHERE)
    given = Examples([{"text": "!"}, {"text": "Hello zzz"}], "a.jsonl", [1, 2])
    rows = task.features(given, tokenizer, (), training=False, labelled=False)
    check_vocabulary(rows, tokenizer, len(tokenizer))
    most = max(tokenizer("Hello zzz")["input_ids"])
    with pytest.raises(DataError, match=f"a.jsonl:2: .* is token {most}, beyond .* of {most}"):
        check_vocabulary(rows, tokenizer, most)


def build_with_targets(targets, checkpoint, tokenizer, task):
    """Build a model with an adapter on some modules."""
    from pipelines.models.build import build_model

    model = Model(name_or_path=str(checkpoint))
    recipe = Recipe(name="a", task=task, model=model, lora=Lora(target_modules=targets))
    labels = ("a", "b") if isinstance(task, TextClassification) else ()
    return build_model(recipe, tokenizer, labels)


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        ("causal_lm", "c_atn", "the model has no 'c_atn'; did you mean c_attn"),
        ("causal_lm", "h.7.attn.c_attn", "the model has no 'h.7.attn.c_attn'"),
        ("causal_lm", "q_proj", "the model has no 'q_proj'; did you mean c_proj"),
        ("causal_lm", "key", "'key'; allowed: all-linear, c_attn, c_fc, c_proj"),
        ("causal_lm", "attn", "'attn' is GPT2Attention, not a linear layer. Allowed: all-linear"),
        ("causal_lm", "transformer", "'transformer' is GPT2Model, not a linear layer"),
        ("causal_lm", "ln_1", "'ln_1' is LayerNorm, not a linear layer"),
        ("causal_lm", "wte", "'wte' is Embedding, not a linear layer"),
        ("causal_lm", "lm_head", "would, merged, change the embeddings"),
        ("text_classification", "score", "'score' is trained as a whole. Leave it out"),
        ("question_answering", "qa_outputs", "'qa_outputs' is trained as a whole"),
    ],
)
def test_target_modules_without_linear_layers_are_named(
    task, target, message, checkpoint, tokenizer, tasks
):
    with pytest.raises(RecipeError, match=f"^lora.target_modules: .*{message}"):
        build_with_targets(("c_attn", target), checkpoint, tokenizer, tasks[task])


@pytest.mark.parametrize(
    ("targets", "layers"),
    [(("h.0.attn.c_attn", "c_fc"), 3), (("mlp.c_proj",), 2), (("all-linear",), 8)],
)
def test_target_modules_are_ends_of_names(targets, layers, checkpoint, tokenizer, tasks):
    model = build_with_targets(targets, checkpoint, tokenizer, tasks["text_classification"])
    assert sum(name.endswith("lora_A.default.weight") for name in model.state_dict()) == layers


def test_all_linear_layers_are_those_of_gpt2_by_their_ends(checkpoint, tokenizer, tasks):
    model = build_with_targets(("all-linear",), checkpoint, tokenizer, tasks["question_answering"])
    assert model.peft_config["default"].target_modules == {"c_attn", "c_proj", "c_fc"}


def test_all_linear_layers_are_named_whole_where_an_end_is_also_anothers():
    import torch

    from pipelines.models.adapters import target_modules

    def linear():
        return torch.nn.Linear(2, 2)

    parts = {"query": linear(), "proj": linear(), "norm": torch.nn.LayerNorm(2)}
    model = torch.nn.ModuleDict({"a": torch.nn.ModuleDict(parts), "score": linear()})
    model["b"] = torch.nn.ModuleDict({"proj": torch.nn.LayerNorm(2), "score": linear()})
    expected = ["query", "a.proj", "b.score"]
    assert target_modules(model, Lora(), "score") == expected


@pytest.mark.parametrize("name", ["classify", "answer", "documents"])
def test_helpdesk_data_is_the_same_for_a_seed_and_shares_no_ticket(name, tmp_path):
    module = load_module(ROOT / "scripts" / "helpdesk_data.py")
    texts = {}
    for copy, seed in (("a", 3), ("b", 3), ("c", 4)):
        module.write(tmp_path / copy, seed=seed, num_train=200, num_test=60, num_documents=50)
        for split in ("train", "test"):
            texts[copy, split] = (tmp_path / copy / name / f"{split}.jsonl").read_text()
    assert texts["a", "train"] == texts["b", "train"] != texts["c", "train"]
    column = "context" if name == "answer" else "text"
    train, test = (
        [json.loads(line)[column] for line in texts["a", split].splitlines()]
        for split in ("train", "test")
    )
    assert len(set(train)) == len(train)
    assert not set(train) & set(test)


def test_helpdesk_answers_stand_where_they_are_said_to(tmp_path):
    module = load_module(ROOT / "scripts" / "helpdesk_data.py")
    module.write(tmp_path, num_train=1000, num_test=10, num_documents=10)
    rows = [json.loads(line) for line in (tmp_path / "answer/train.jsonl").open(encoding="utf-8")]
    empty = 0
    for row in rows:
        answers = row["answers"]
        empty += not answers["text"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
    assert 0.08 < empty / len(rows) < 0.18
    queues = {json.loads(line)["queue"] for line in (tmp_path / "classify/train.jsonl").open()}
    assert len(queues) == 8


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    from pipelines.cli import console

    monkeypatch.setattr("sys.argv", ["gpt2-recipes", "--version"])
    console()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"gpt2-recipes {declared}\n"
