"""A change that --allow-changed names takes effect on resume, or is refused with why."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Tokenizers
from tokenizers import normalizers
from transformers import TrainerCallback, get_scheduler

import pipelines.flow
from helpers.factories import make_tasks, short_recipe
from pipelines.errors import Preempted, RecipeError
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import to_json_value
from pipelines.recipe.values import Distillation, Lora, Model, Scratch, Tokenizer, Train
from pipelines.results.files import read_manifest, write_manifest
from pipelines.training.checkpoints import MARKER, mark_complete, newest_verified
from pipelines.training.identity import RESUMABLE, check_allowed, leaves, why_fixed

TRAIN = Train(
    max_steps=8,
    learning_rate=1e-2,
    warmup_steps=4,
    global_batch_size=8,
    logging_steps=1,
    save_steps=2,
)


def recipe_for(helpdesk, folder, **options) -> Recipe:
    """Return a short run of a tiny model with dropout."""
    model = Scratch(
        n_layer=1,
        n_head=2,
        n_embd=32,
        n_positions=64,
        dropout=0.1,
        tokenizer=Tokenizer(vocab_size=300),
    )
    task = make_tasks(helpdesk)["causal_lm"]
    train = replace(TRAIN, **options)
    return Recipe(name="changed", task=task, model=model, train=train, output_dir=str(folder))


@pytest.fixture
def watch():
    """Note each step's hyper-parameters, evaluations and checkpoints; stop at a step if asked."""
    import os
    import signal

    seen = {"rates": {}, "groups": {}, "evaluated": [], "saved": [], "logged": []}
    stop = {"at": None}

    class Watching(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            step = state.global_step + 1
            seen["rates"][step] = [group["lr"] for group in optimizer.param_groups]
            kept = ("betas", "weight_decay", "eps")
            seen["groups"][step] = [
                {name: group[name] for name in kept if name in group}
                for group in optimizer.param_groups
            ]
            if step == stop["at"]:
                os.kill(os.getpid(), signal.SIGTERM)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "grad_norm" in logs:
                seen["logged"].append((state.global_step, logs["learning_rate"]))
            if "eval_loss" in logs and state.global_step:
                seen["evaluated"].append(state.global_step)

        def on_save(self, args, state, control, **kwargs):
            seen["saved"].append(state.global_step)

    def stopped(recipe, step=3):
        stop["at"] = step
        with pytest.raises(Preempted, match=f"stopped at step {step}"):
            run(recipe, [Watching()])
        stop["at"] = None
        for each in seen.values():
            each.clear()
        return seen, [Watching()]

    return stopped


def schedule(train: Train, num_steps: int) -> list[float]:
    """Return the learning rate of each step of a run of so many, from its recipe alone."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train.learning_rate)
    cosine = train.lr_scheduler_type == "cosine"
    name = "cosine_with_min_lr" if cosine else train.lr_scheduler_type
    options = {"min_lr": train.min_learning_rate} if cosine else None
    made = get_scheduler(
        name, optimizer, int(train.warmup_steps), num_steps, scheduler_specific_kwargs=options
    )
    rates = []
    for _ in range(num_steps):
        rates.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return rates


CHANGES = [
    ("adamw_torch_fused", {"learning_rate": 2e-3}),
    ("adamw_torch_fused", {"lr_scheduler_type": "cosine", "min_learning_rate": 1e-3}),
    ("adamw_torch_fused", {"lr_scheduler_type": "constant_with_warmup", "learning_rate": 3e-3}),
    ("adamw_torch_fused", {"max_steps": 6, "warmup_steps": 2}),
    ("adamw_bnb_8bit", {"learning_rate": 2e-3, "weight_decay": 0.3, "adam_beta2": 0.9}),
    ("muon", {"learning_rate": 2e-3, "weight_decay": 0.3, "adam_beta1": 0.5}),
    ("muon", {"lr_scheduler_type": "cosine"}),
]


@pytest.mark.parametrize(("optim", "changes"), CHANGES)
def test_the_steps_after_a_resume_follow_the_new_recipe(optim, changes, helpdesk, tmp_path, watch):
    recipe = recipe_for(helpdesk, tmp_path / "run", optim=optim)
    seen, callbacks = watch(recipe)
    changed = replace(recipe, train=replace(recipe.train, **changes))
    names = tuple(f"train.{name}" for name in changes)
    run(replace(changed, allow_changed=names), callbacks)
    train = changed.train
    expected = schedule(train, train.max_steps)
    assert list(seen["rates"]) == list(range(4, train.max_steps + 1))
    for step, rates in seen["rates"].items():
        assert rates == pytest.approx([expected[step - 1]] * len(rates), rel=1e-12)
    assert seen["logged"] == [
        (step, pytest.approx(expected[step - 1])) for step in range(4, train.max_steps + 1)
    ]
    for groups in seen["groups"].values():
        assert {g["weight_decay"] for g in groups} == {train.weight_decay, 0.0}
        betas = {tuple(g["betas"]) for g in groups if "betas" in g}
        assert betas == {(train.adam_beta1, train.adam_beta2)}
    sidecar = read_manifest(recipe.folder)
    assert [each["field"] for each in sidecar["changed_on_resume"]] == sorted(names)
    assert {each["step"] for each in sidecar["changed_on_resume"]} == {3}


def test_intervals_and_the_end_are_those_of_the_new_recipe(helpdesk, tmp_path, watch):
    recipe = recipe_for(helpdesk, tmp_path / "run", save_steps=2, eval_steps=5, logging_steps=1)
    seen, callbacks = watch(recipe)
    intervals = {"save_steps": 3, "eval_steps": 2, "logging_steps": 4, "max_steps": 13}
    changed = replace(recipe, train=replace(recipe.train, **intervals))
    run(replace(changed, allow_changed=tuple(f"train.{name}" for name in intervals)), callbacks)
    assert seen["saved"] == [6, 9, 12, 13]
    assert seen["evaluated"] == [4, 6, 8, 10, 12, 13]
    assert [step for step, _ in seen["logged"]] == [4, 8, 12]


def test_a_run_that_has_gone_beyond_the_new_end_is_refused(helpdesk, tmp_path, watch):
    recipe = recipe_for(helpdesk, tmp_path / "run")
    watch(recipe)
    for name, value in (("max_steps", 2), ("num_train_epochs", 0.02)):
        ends = {"max_steps": None} | {name: value}
        changed = replace(recipe, train=replace(recipe.train, **ends))
        names = ("train.max_steps", "train.num_train_epochs")
        with pytest.raises(RecipeError, match=f"train.{name}: the run would end at step"):
            run(replace(changed, allow_changed=names))
    changed = replace(recipe, train=replace(recipe.train, max_steps=3))
    run(replace(changed, allow_changed=("train.max_steps",)))  # no step is left, nor trained


def test_a_resume_at_the_last_step_trains_no_further(helpdesk, tmp_path, monkeypatch):
    recipe = recipe_for(helpdesk, tmp_path / "run", max_steps=3)  # in the middle of an epoch
    whole = replace(recipe, output_dir=str(tmp_path / "whole"))
    run(whole)

    def fails(*arguments):
        raise KeyError("the last evaluation")

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.flow, "check_finite", fails)
        with pytest.raises(KeyError):
            run(recipe)
    run(recipe)
    files = [r.folder / "model.safetensors" for r in (recipe, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train.optim", "the state in the checkpoint is that of the other optimizer"),
        ("train.seed", "the rows that are still to come"),
        ("train.global_batch_size", "counted in steps of that many rows"),
        ("lora", "those of the other adapter"),
        ("lora.r", "those of the other adapter"),
        ("quantization", "on the other base"),
        ("model.name_or_path", "come from the other model"),
        ("task.block_size", "is the other task"),
        ("task.dataset.streaming", "a stream has another order"),
        ("train.learning_rat", "did you mean train.learning_rate"),
        ("learning_rate", "did you mean train.learning_rate"),
        ("data.trian", "did you mean data.train"),
        ("sha256_of.model", "has other files than when the run began"),
    ],
)
def test_what_cannot_change_is_refused_before_anything_is_read(name, message, helpdesk, tmp_path):
    recipe = Recipe(
        name="a",
        task=make_tasks(helpdesk)["causal_lm"],
        model=Model(name_or_path=str(tmp_path / "nowhere")),
        lora=Lora(),
        allow_changed=("train.learning_rate", name),
    )
    with pytest.raises(RecipeError, match=message) as caught:
        check_allowed(recipe)
    assert [problem.path for problem in caught.value.problems] == ["allow_changed"]


def test_every_field_of_a_recipe_either_changes_or_says_why_not(helpdesk):
    recipe = Recipe(
        name="a", task=make_tasks(helpdesk)["causal_lm"], model=Model(name_or_path="a"), lora=Lora()
    )
    fixed = {path for path in leaves(to_json_value(recipe)) if why_fixed(path)}
    assert {"train.optim", "train.seed", "model.revision", "lora.r"} <= fixed
    assert why_fixed("train.new_field") == RESUMABLE["train"]
    check_allowed(replace(recipe, allow_changed=("world_size", "versions.torch", "data.eval")))


def test_changed_rows_take_effect_and_are_recorded(helpdesk, tmp_path, watch):
    import shutil

    data = shutil.copytree(helpdesk / "documents", tmp_path / "data")
    recipe = recipe_for(helpdesk, tmp_path / "run", max_steps=4)
    source = replace(recipe.task.dataset, path=str(data))
    recipe = replace(recipe, task=replace(recipe.task, dataset=source))
    watch(recipe)
    lines = (data / "test.jsonl").read_text().splitlines()
    (data / "test.jsonl").write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(RecipeError, match=r"data.eval.*--allow-changed data.eval"):
        run(recipe)
    metrics = run(replace(recipe, allow_changed=("data.eval",)))
    assert metrics["baseline"] == {}  # the score before training is of the other rows
    [change] = read_manifest(recipe.folder)["changed_on_resume"]
    assert change["field"] == "data.eval"
    assert change["step"] == 3


FORMS = (
    "[]",
    "3",
    "null",
    '{"files": []}',
    '{"files": {"a": 1}}',
    "[" * 100_000,
    lambda marker: marker.pop("recipe"),
    lambda marker: marker.pop("world_size"),
    lambda marker: marker.pop("run"),
    lambda marker: marker.update(changed="x"),
    lambda marker: marker.update(step=99),
    lambda marker: marker["files"]["optimizer.pt"].update(size="x"),
    lambda marker: marker["files"].update({"../optimizer.pt": marker["files"]["optimizer.pt"]}),
)


def change_base(folder):
    """Add 1 to the last bias of a model."""
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.bias"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_tokenizer(folder):
    """Let a tokenizer strip spaces, which has the same tokens."""
    backend = Tokenizers.from_file(str(folder / "tokenizer.json"))
    backend.normalizer = normalizers.Strip()
    backend.save(str(folder / "tokenizer.json"))


def change_teacher(folder):
    """Change the weights of a result, as a training with --overwrite does."""
    change_base(folder)
    write_manifest(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [("model", change_base), ("tokenizer", change_tokenizer), ("teacher", change_teacher)],
)
def test_a_folder_whose_files_have_changed_is_refused(
    name, change, checkpoint, helpdesk, tmp_path, watch
):
    named = shutil.copytree(checkpoint, tmp_path / name)
    task = make_tasks(helpdesk)["text_classification"]
    start = short_recipe(task, checkpoint, tmp_path / "teacher-run")
    if name == "teacher":
        run(start)
        shutil.rmtree(named)
        named = (tmp_path / "teacher-run").rename(named)
    recipe = replace(start, output_dir=str(tmp_path / "run"), train=TRAIN)
    if name == "model":
        recipe = replace(recipe, model=Model(name_or_path=str(named)))
    elif name == "tokenizer":
        recipe = replace(recipe, model=replace(recipe.model, tokenizer=str(named)))
    else:
        recipe = replace(recipe, distillation=Distillation(teacher=str(named)))
    before = shutil.copytree(named, tmp_path / "before")
    watch(recipe)
    change(named)
    other = f"sha256_of.{name}: the run in .* had .* the folder that the recipe names has other "
    with pytest.raises(RecipeError, match=other):
        run(recipe)
    shutil.rmtree(named)
    shutil.copytree(before, named, copy_function=shutil.copyfile)  # other times, equal files
    run(recipe)
    assert run(recipe)
    change(named)
    with pytest.raises(RecipeError, match=f"sha256_of.{name}: the result in .* has"):
        run(recipe)
    run(replace(recipe, overwrite=True))
    assert run(recipe)


def test_a_checkpoint_of_an_earlier_version_names_no_folders(helpdesk, tmp_path, watch):
    recipe = recipe_for(helpdesk, tmp_path)
    watch(recipe)
    newest = newest_verified(tmp_path / "checkpoints")
    marker = json.loads((newest / MARKER).read_text())
    del marker["sha256_of"]
    (newest / MARKER).write_text(json.dumps(marker))
    assert run(recipe)["rows"]


@pytest.mark.parametrize("form", FORMS)
def test_a_marker_of_another_form_falls_back_to_the_checkpoint_before(form, tmp_path, capsys):
    identity = {"recipe": {}, "data": {}, "world_size": 1, "versions": {}}
    for step in (2, 4):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "optimizer.pt").write_text("moments")
        mark_complete(checkpoint, identity | {"run": "a", "changed": []})
    assert newest_verified(tmp_path) == checkpoint
    if callable(form):
        marker = json.loads((checkpoint / MARKER).read_text())
        form(marker)
        form = json.dumps(marker)
    (checkpoint / MARKER).write_text(form)
    assert newest_verified(tmp_path) == tmp_path / "checkpoint-2"
    assert f"checkpoint-4 passed over: {MARKER} is damaged" in capsys.readouterr().out
