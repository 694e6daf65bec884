"""Whole runs of what the matrix leaves out: LoRA's options, streams, other problem types."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import pipelines.flow
from helpers.factories import first_logits, make_tasks
from pipelines.data.load import load_splits
from pipelines.data.source import DatasetSource
from pipelines.data.splits import check_splits
from pipelines.errors import RecipeError
from pipelines.hub.load import load_result
from pipelines.models.build import build_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Int8, Lora, Model, Scratch, Tokenizer, Train
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.generation import Generation
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.preference import PreferenceTuning
from pipelines.tasks.replies import CHAT_TEMPLATE
from pipelines.tasks.text_classification import TextClassification


def train_and_reload(recipe, monkeypatch):
    """Run a recipe; return the logits of four rows before saving and after loading."""
    noted = []
    real_save = pipelines.flow.save

    def rows_of(tokenizer, labels):
        splits, _ = check_splits(recipe.task, load_splits(recipe.task.dataset))
        held_out = recipe.task.features(splits.held_out, tokenizer, labels, training=False)
        return held_out.dataset[:4]

    def save_and_note(trainer, run, state):
        rows = rows_of(run.tokenizer, run.labels)
        noted.append(first_logits(recipe.task, trainer.model.eval(), run.tokenizer, rows))
        return real_save(trainer, run, state)

    monkeypatch.setattr(pipelines.flow, "save", save_and_note)
    metrics = pipelines.flow.run(recipe)
    loaded = load_result(recipe.folder)
    rows = rows_of(loaded.tokenizer, loaded.labels)
    return noted[0], first_logits(recipe.task, loaded.model, loaded.tokenizer, rows), metrics


OPTIONS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "all-linear": {"target_modules": ("all-linear",)},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_lora_train_and_reload(option, checkpoint, helpdesk, tmp_path, monkeypatch):
    recipe = Recipe(
        name=option,
        task=make_tasks(helpdesk)["question_answering"],
        model=Model(name_or_path=str(checkpoint)),
        lora=Lora(r=4, **OPTIONS[option]),
        train=Train(max_steps=2, learning_rate=1e-2, warmup_steps=0),
        output_dir=str(tmp_path / "out"),
    )
    before, after, _ = train_and_reload(recipe, monkeypatch)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_new_adapter_changes_nothing_yet(option, checkpoint, tokenizer, tasks):
    task, model = tasks["causal_lm"], Model(name_or_path=str(checkpoint))
    rows = [{"input_ids": list(range(5, 40))}, {"input_ids": list(range(50, 60))}]
    plain = build_model(Recipe(name="a", task=task, model=model), tokenizer, ())
    lora = Lora(r=4, **OPTIONS[option])
    adapted = build_model(Recipe(name="a", task=task, model=model, lora=lora), tokenizer, ())
    torch.testing.assert_close(
        first_logits(task, adapted.eval(), tokenizer, rows),
        first_logits(task, plain.eval(), tokenizer, rows),
        rtol=1e-4,
        atol=1e-4,
    )


def test_olora_is_refused_where_peft_cannot_do_it(checkpoint, tokenizer, tasks):
    recipe = Recipe(
        name="a",
        task=tasks["causal_lm"],
        model=Model(name_or_path=str(checkpoint)),
        lora=Lora(init_lora_weights="olora"),
    )
    with pytest.raises(RecipeError, match="Conv1D"):
        build_model(recipe, tokenizer, ())


@pytest.mark.parametrize("initial", ["pissa", "olora", "orthogonal"])
def test_initialisations_that_read_the_weights_are_refused_on_a_quantised_base(initial, tasks):
    with pytest.raises(RecipeError, match="lora.init_lora_weights"):
        Recipe(
            name="a",
            task=tasks["causal_lm"],
            model=Model(name_or_path="gpt2"),
            quantization=Int8(),
            lora=Lora(init_lora_weights=initial),
        )


def write(folder, rows):
    """Write the rows as both splits."""
    for split in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return DatasetSource(path=str(folder), eval_split="test")


def test_several_labels(tmp_path, monkeypatch):
    rows = [
        {"text": f"{a} {b} {n}", "label": [x for x in (a, b) if x != "none"] or ["none"]}
        for n in range(40)
        for a in ("red", "none")
        for b in ("round", "none")
    ]
    recipe = Recipe(
        name="several",
        task=TextClassification(
            dataset=write(tmp_path, rows),
            problem_type="multi_label_classification",
            max_length=16,
        ),
        model=Scratch(size="tiny", n_positions=16, tokenizer=Tokenizer(vocab_size=300)),
        train=Train(num_train_epochs=4, learning_rate=3e-3, global_batch_size=16),
        output_dir=str(tmp_path / "out"),
    )
    before, after, metrics = train_and_reload(recipe, monkeypatch)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert load_result(recipe.folder).labels == ("none", "red", "round")
    assert metrics["micro_f1"] > 0.95 > metrics["baseline"]["before training"]
    assert metrics["macro_f1"] > 0.9


def test_regression(tmp_path, monkeypatch):
    rows = [{"text": "ab " * n, "label": n / 4} for n in range(1, 13)] * 12
    recipe = Recipe(
        name="regression",
        task=TextClassification(
            dataset=write(tmp_path, rows), problem_type="regression", max_length=32
        ),
        model=Scratch(size="tiny", n_positions=32, tokenizer=Tokenizer(vocab_size=300)),
        train=Train(num_train_epochs=10, learning_rate=2e-3, global_batch_size=16),
        output_dir=str(tmp_path / "out"),
    )
    before, after, metrics = train_and_reload(recipe, monkeypatch)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert metrics["pearsonr"] > 0.9
    assert metrics["spearmanr"] > 0.9
    assert metrics["mse"] < 0.3


def test_a_stream_trains_like_the_rows_in_order(helpdesk, checkpoint, tmp_path, monkeypatch):
    recipe = Recipe(
        name="stream",
        task=CausalLM(
            dataset=DatasetSource(
                path=str(helpdesk / "documents"), streaming=True, max_eval_rows=5
            ),
            block_size=32,
        ),
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=6, learning_rate=1e-2, warmup_steps=0, global_batch_size=8),
        output_dir=str(tmp_path / "out"),
    )
    before, after, metrics = train_and_reload(recipe, monkeypatch)
    torch.testing.assert_close(after, before)
    assert metrics["perplexity"] < metrics["baseline"]["before training"]


@pytest.mark.parametrize("kind", ["instruction", "packed", "preference"])
def test_a_chat_trains_and_reloads_with_its_template(kind, checkpoint, tmp_path, monkeypatch):
    def chat(reply):
        asked = [{"role": "user", "content": "late"}, {"role": "assistant", "content": "When?"}]
        return [*asked, {"role": "user", "content": "now"}, {"role": "assistant", "content": reply}]

    rows = [{"chosen": chat(f"Sorry, {n}."), "rejected": chat(f"{n}?")} for n in range(24)]
    source, options = write(tmp_path, rows), {"chat": True, "max_length": 128}
    task = {
        "instruction": InstructionTuning(dataset=source, completion_column="chosen", **options),
        "packed": InstructionTuning(
            dataset=source, completion_column="chosen", packing=True, **options
        ),
        "preference": PreferenceTuning(dataset=source, **options),
    }[kind]
    recipe = Recipe(
        name="chat",
        task=replace(task, generation=Generation(max_new_tokens=4)),
        model=Model(name_or_path=str(checkpoint)),
        lora=Lora(r=4),
        train=Train(max_steps=4, learning_rate=1e-2, warmup_steps=0, global_batch_size=4),
        output_dir=str(tmp_path / "out"),
    )
    before, after, metrics = train_and_reload(recipe, monkeypatch)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    assert load_result(recipe.folder).tokenizer.chat_template == CHAT_TEMPLATE
    assert metrics["rows"] == (24 if kind == "preference" else 1)  # replies to one prompt
    if kind == "preference":
        assert metrics["reward_margin"] > 0


def test_a_character_model_from_a_text_file(tmp_path, monkeypatch):
    (tmp_path / "plays.txt").write_text("to be, or not to be. " * 200)
    recipe = Recipe(
        name="chars",
        task=CausalLM(dataset=DatasetSource(path=str(tmp_path / "plays.txt")), block_size=32),
        model=Scratch(size="tiny", n_positions=32, tokenizer=Tokenizer(kind="char")),
        train=Train(max_steps=60, learning_rate=3e-3, global_batch_size=8),
        output_dir=str(tmp_path / "out"),
    )
    before, after, metrics = train_and_reload(recipe, monkeypatch)
    torch.testing.assert_close(after, before)
    assert metrics["perplexity"] < 2.5
    tokenizer = load_result(recipe.folder).tokenizer
    assert len(tokenizer) == 1 + len(set("to be, or not to be. "))
    assert tokenizer.decode(tokenizer("not to be")["input_ids"]) == "not to be"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_learns_the_same_and_saves_the_same_names(checkpoint, tasks, tmp_path):
    losses, weights = {}, {}
    for compiled in (False, True):
        recipe = Recipe(
            name="compiled",
            task=tasks["causal_lm"],
            model=Model(name_or_path=str(checkpoint)),
            train=Train(max_steps=3, learning_rate=1e-3, torch_compile=compiled),
            output_dir=str(tmp_path / str(compiled)),
        )
        losses[compiled] = pipelines.flow.run(recipe)["loss"]
        weights[compiled] = load_file(recipe.folder / "model.safetensors")
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert weights[True].keys() == weights[False].keys()
