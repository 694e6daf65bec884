"""Model cards: metadata that the Hub accepts, and escaped names."""

import ast
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from helpers.factories import CASES, ROOT, make_tasks, method
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.hub.card import model_card
from pipelines.hub.contents import make_portable
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Int8, Lora, Model, Scratch
from pipelines.tasks.base import Task
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "\n---\nlicense: x\n---\n",
    "```\n# broken",
    "a | b",
    "[x](javascript:alert(1))",
    "'\"\\ {{",
    "\u202egnp.exe",
]
SIDECAR = {
    "task": "TextClassification",
    "labels": HOSTILE,
    "pad_token_id": 0,
    "max_length": 64,
    "base": None,
    "dataset": {"eval_rows_sha256": "0" * 64},
    "hardware": "1 x <b>GPU</b>",
    "versions": {"torch": "2.13.0"},
    "metrics": {
        "primary": "accuracy",
        "accuracy": 0.5,
        "confidence_interval": [0.4, 0.6],
        "rows": 100,
        "seconds": 1.0,
        "baseline": {"majority class": 0.25},
        "f1_per_class": dict.fromkeys(HOSTILE, 0.5),
        "precision_per_class": dict.fromkeys(HOSTILE, 0.25),
        "recall_per_class": dict.fromkeys(HOSTILE, 0.75),
        "support_per_class": dict.fromkeys(HOSTILE, 1234),
    },
}
RECIPE = Recipe(
    name="hostile",
    task=TextClassification(
        dataset=DatasetSource(path="./data/<script>\n---\nlicense: x.jsonl", name="`\n---\n"),
        text_column="te`xt",
    ),
    model=Model(name_or_path="user/base", revision="a" * 40),
    quantization=Int8(),
    lora=Lora(),
)


def parts(card: str) -> tuple[dict, str]:
    """Return the metadata as the Hub reads it, and the text."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(match[1]), card[match.end() :]


def test_names_do_not_break_out_of_metadata_html_or_code():
    front, body = parts(model_card(RECIPE, SIDECAR, "user/hostile"))
    assert front["license"] == "other"
    assert front["base_model"] == "user/base"
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"]["type"].isprintable()
    outside = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert set(re.findall(r"<(\w+)", outside)) == {"code"}
    assert "](java" not in outside
    assert "\n---" not in outside
    assert "\u202e" not in body
    assert body.count("```") == 8
    table = [line for line in outside.splitlines() if line.endswith("| 0.5000 | 1,234 |")]
    assert len(table) == len(HOSTILE)
    assert all(line.count("|") == 6 for line in table)


def test_a_card_has_the_thresholds_of_labels_and_applies_them_in_its_snippet():
    task = TextClassification(
        dataset=RECIPE.task.dataset,
        problem_type="multi_label_classification",
        tune_thresholds=True,
        class_weights={"a|b": 3, "c": 0.5},
        label_smoothing=0.1,
    )
    thresholds = {"a|b": 0.25, "c": 0.5}
    metrics = SIDECAR["metrics"] | {
        "f1_per_class": {"a|b": 0.5, "c": 0.25},
        "precision_per_class": {"a|b": 0.75, "c": 0.125},
        "recall_per_class": {"a|b": 0.375, "c": 1.0},
        "support_per_class": {"a|b": 8, "c": 3},
    }
    sidecar = SIDECAR | {"labels": ["a|b", "c"], "metrics": metrics, "thresholds": thresholds}
    body = parts(model_card(replace(RECIPE, task=task), sidecar, "user/x"))[1]
    assert (
        "| label | threshold | precision | recall | F1 | rows |\n|---|---|---|---|---|---|" in body
    )
    first = "| <code>a&#124;b</code> | 0.2500 | 0.7500 | 0.3750 | 0.5000 | 8 |\n"
    assert (
        f"{first}| <code>c</code> | 0.5000 | 0.1250 | 1.0000 | 0.2500 | 3 |\n\nA label is " in body
    )
    assert "which was chosen for the best F1 of the label on the validation rows." in body
    assert "| weights of labels in the loss | <code>a&#124;b</code> 3, <code>c</code> 0.5 |" in body
    assert "| label smoothing | 0.1 |" in body
    plain = re.findall(r"```python\n(.*?)```", body, re.DOTALL)[1]
    decide = plain[plain.index("names = model.config") :].replace("model.config.id2label", "NAMES")
    import torch

    printed = []
    logits = torch.tensor([[-1.0, -0.5], [-2.0, 0.5]])  # probabilities 0.27 0.38, 0.12 0.62
    names = {1: "c", 0: "a|b"}
    exec(decide, {"NAMES": names, "logits": logits, "torch": torch, "print": printed.append})
    assert printed == [[["a|b"], ["c"]]]


def test_the_table_of_labels_has_no_other_scores_where_a_result_has_f1_alone():
    later = ("precision_per_class", "recall_per_class", "support_per_class")
    metrics = {name: value for name, value in SIDECAR["metrics"].items() if name not in later}
    metrics["f1_per_class"] = {"a": 0.5, "b": 1.0}
    body = parts(model_card(RECIPE, SIDECAR | {"metrics": metrics}, "user/hostile"))[1]
    assert "| <code>a</code> |  |  | 0.5000 |  |\n| <code>b</code> |  |  | 1.0000 |  |\n" in body


def test_the_snippets_of_a_hostile_card_are_python_with_the_same_labels():
    body = parts(model_card(RECIPE, SIDECAR, "user/hostile"))[1]
    own, plain = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    ast.parse(own)
    (labels,) = [
        node.value
        for node in ast.parse(plain).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "labels"
    ]
    assert ast.literal_eval(labels) == HOSTILE


@pytest.mark.parametrize("lora", [Lora(), None])
def test_metadata_of_a_hub_dataset(lora):
    source = DatasetSource(path="nyu-mll/glue", name="sst2", revision="b" * 40, eval_split="test")
    recipe = replace(
        RECIPE,
        task=TextClassification(dataset=source),
        lora=lora,
        quantization=Int8() if lora else None,
    )
    front, body = parts(model_card(recipe, SIDECAR, "user/x"))
    assert front["datasets"] == ["nyu-mll/glue"]
    assert front["base_model_relation"] == ("adapter" if lora else "finetune")
    assert front["library_name"] == ("peft" if lora else "transformers")
    dataset = front["model-index"][0]["results"][0]["dataset"]
    assert dataset == {
        "name": "nyu-mll/glue (sst2)",
        "type": "nyu-mll/glue",
        "split": "test",
        "config": "sst2",
        "revision": "b" * 40,
    }
    assert f"<code>nyu-mll/glue (sst2)</code> at <code>{'b' * 40}</code>" in body


def test_a_licence_is_the_recipes_else_the_bases_else_other():
    for own, base, expected in (
        ("mit", "apache-2.0", "mit"),
        (None, "apache-2.0", "apache-2.0"),
        (None, None, "other"),
        (None, "\n---\nlicense: x", "\n---\nlicense: x"),
    ):
        recipe = replace(RECIPE, license=own)
        front, body = parts(model_card(recipe, SIDECAR, "user/x", base_license=base))
        assert front["license"] == expected
        assert "license: x" not in re.sub(r"<code>.*?</code>|```.*?```", "", body, flags=re.DOTALL)


def test_the_lines_that_install_are_those_of_the_readme():
    install = parts(model_card(RECIPE, SIDECAR, "user/x"))[1].split("```bash\n")[1].split("```")[0]
    assert install.startswith("pip install ")
    assert install.strip() in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "does", "rows"),
    [
        ("causal_lm", "predicts the next token", '.generate(["Good morning"])'),
        ("text_classification", "classifies texts", '.predict(["A text to classify.", "And'),
        ("question_answering", "answers questions by", '.predict([{"question": "Who wrote?", "con'),
        ("instruction_tuning", "replies to prompts,", '.generate(["Good morning"])'),
        ("preference_tuning", "replies to prompts as people", '.generate(["Good morning"])'),
    ],
)
def test_each_task_has_a_text_and_rows_of_its_own(name, does, rows):
    recipe = replace(RECIPE, task=make_tasks(Path("./data"))[name])
    body = parts(model_card(recipe, SIDECAR, "user/x"))[1]
    assert f"A LoRA adapter that {does}" in body
    assert f"result{rows}" in body


@pytest.mark.parametrize(("name", "how"), CASES)
def test_a_card_of_each_task_by_each_method_is_whole(name, how):
    recipe = replace(RECIPE, task=make_tasks(Path("./data"))[name], **method(how))
    front, body = parts(model_card(recipe, SIDECAR, "user/x"))
    relation, library = ("finetune", "transformers") if how == "full" else ("adapter", "peft")
    assert (front["base_model_relation"], front["library_name"]) == (relation, library)
    for snippet in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
        ast.parse(snippet)
    bases = {"8bit": "</code> in 8 bits.", "4bit": "</code> in 4 bits (NF4).", "lora": "</code>."}
    assert bases.get(how, "A GPT-2-style model that") in body
    assert ("BitsAndBytesConfig(" in body) == (how in bases and how != "lora")
    assert "\n\n\n" not in body


@dataclass(frozen=True, kw_only=True)
class Tagging(Task):
    """A task that no template is named after."""

    text_column: str = "te`xt"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    head: ClassVar[str | None] = "score"
    peft_task_type: ClassVar[str] = "TOKEN_CLS"
    pipeline_tag: ClassVar[str] = "token-classification"

    def model_kwargs(self, labels: tuple[str, ...]) -> dict[str, Any]:
        return {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "x": None}


@dataclass(frozen=True, kw_only=True)
class Story(Tagging):
    """A task that has a template of its pipeline tag only."""

    head: ClassVar[str | None] = None
    pipeline_tag: ClassVar[str] = "text-generation"


def test_a_task_without_a_template_of_its_own_gets_the_card_of_its_tag_or_of_any_task():
    source = DatasetSource(path="a/b")
    tagging = replace(RECIPE, task=Tagging(dataset=source))
    body = parts(model_card(tagging, SIDECAR, "user/x"))[1]
    assert "A LoRA adapter that does token classification, trained on" in body
    own, plain = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    (call,) = (each for each in ast.walk(ast.parse(own)) if isinstance(each, ast.List))
    assert ast.literal_eval(call) == [{"te`xt": "A text."}]
    loading = next(each for each in ast.walk(ast.parse(plain)) if isinstance(each, ast.Call))
    arguments = {each.arg: each.value for each in loading.keywords}
    assert ast.literal_eval(arguments["id2label"]) == dict(enumerate(HOSTILE))
    assert ast.literal_eval(arguments["x"]) is None
    body = parts(model_card(replace(RECIPE, task=Story(dataset=source)), SIDECAR, "user/x"))[1]
    assert "A LoRA adapter that writes texts, trained on" in body
    assert "model.generate(" in body


def test_the_pair_and_answer_snippets_are_python():
    for task in (
        TextClassification(dataset=DatasetSource(path="a/b"), text_pair_column="other"),
        TextClassification(dataset=DatasetSource(path="a/b"), problem_type="regression"),
        TextClassification(
            dataset=DatasetSource(path="a/b"), problem_type="multi_label_classification"
        ),
        QuestionAnswering(dataset=DatasetSource(path="a/b"), version_2_with_negative=True),
        CausalLM(dataset=DatasetSource(path="a/b")),
        InstructionTuning(dataset=DatasetSource(path="a/b"), chat=True),
        InstructionTuning(dataset=DatasetSource(path="a/b"), prompt_format="{a}`{b} "),
    ):
        sidecar = SIDECAR | {"task": type(task).__name__}
        body = parts(model_card(replace(RECIPE, task=task), sidecar, "user/x"))[1]
        for snippet in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
            ast.parse(snippet)


@pytest.mark.parametrize("template", ["TextClassification", "onnx/TextClassification"])
@pytest.mark.parametrize("lengths", [(1, 1), (40, 3), (3, 40), (40, 40), (8, 7), (8, 8), (9, 7)])
def test_the_snippet_of_a_pair_cuts_the_texts_as_training_does(template, lengths, tokenizer):
    import numpy as np

    task = TextClassification(
        dataset=DatasetSource(path="a/b"), text_pair_column="other", max_length=16
    )
    source = (ROOT / "pipelines" / "hub" / "templates" / f"{template}.md.jinja").read_text()
    _, pairs = source.rsplit("{% if task.text_pair_column %}", 1)
    snippet = pairs.partition("{% else %}")[0].replace("{{ task.max_length - 1 }}", "15")
    first, second = ("7" * length for length in lengths)  # a token each
    snippet = snippet.replace('"A text", "and its second part."', "first, second")
    names = {"tokenizer": tokenizer, "torch": torch, "np": np, "first": first, "second": second}
    exec(snippet, names)
    rows = Examples([{"text": first, "other": second}], "pair")
    (row,) = task.features(rows, tokenizer, (), training=False, labelled=False).dataset
    assert names["ids"].tolist() == [row["input_ids"]]
    assert len(row["input_ids"]) == min(16, sum(lengths) + 1)


def test_a_portable_recipe_has_no_path_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    inside = DatasetSource(path="./data")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    outside = DatasetSource(path=str(elsewhere))
    task = TextClassification(dataset=inside)
    recipe = Recipe(
        name="a",
        task=task,
        model=Scratch(tokenizer=Model(name_or_path=str(elsewhere))),
        output_dir=str(tmp_path / "out"),
        push_to="user/a",
    )
    found = make_portable(recipe)
    assert found.task.dataset.path == "./data"
    assert found.output_dir is None
    assert found.model.tokenizer.name_or_path == f"./{elsewhere.name}"
    found = make_portable(replace(recipe, task=replace(task, dataset=outside)))
    assert found.task.dataset.path == f"./{elsewhere.name}"
    assert str(tmp_path) not in found.to_json()
    assert make_portable(RECIPE).task.dataset == RECIPE.task.dataset


def test_an_adapter_of_gpt2_small_is_below_5_mb(tmp_path):
    """Rank 16 on c_attn, with a tokenizer of GPT-2's size."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2ForSequenceClassification

    from pipelines.results.save import compact_tokenizer_file

    model = GPT2ForSequenceClassification(GPT2Config(num_labels=2, pad_token_id=0))
    adapter = get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=16, target_modules=["c_attn"])
    )
    adapter.save_pretrained(tmp_path)
    tokenizer = large_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    before = (tmp_path / "tokenizer.json").stat().st_size
    compact_tokenizer_file(tokenizer, tmp_path)
    assert (tmp_path / "tokenizer.json").stat().st_size < before / 2
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert 3_500_000 < size < 4_900_000  # which leaves 100 kB for curve, card, recipe, sidecar


def large_tokenizer():
    """A byte-level BPE of 50,257 tokens that are as long as GPT-2's, 6.3 characters on average."""
    import itertools

    from tokenizers import pre_tokenizers
    from transformers import GPT2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = list(alphabet), []
    known = set(tokens)
    letters = "abcdefghijklmnopqrstuvwxyz"
    grown = [a + b for a, b in itertools.product(letters, letters)]
    merges += [(w[0], w[1]) for w in grown]
    level = grown
    while len(tokens) + len(merges) < 50_256:
        level = [word + letter for word in level[:4000] for letter in letters[:4]]
        for word in level:
            if word not in known and len(tokens) + len(merges) < 50_256:
                known.add(word)
                merges.append((word[:-1], word[-1]))
    tokens += ["".join(pair) for pair in merges] + ["<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return GPT2Tokenizer(vocab=vocab, merges=merges)
