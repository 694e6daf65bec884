"""FSDP2 trains, saves and resumes as one process does; what it cannot do is refused beforehand."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.engine_runs import (
    RECOMPUTED,
    assert_equal_results,
    assert_recomputed,
    interrupted,
    launch,
    make_recipes,
    placed,
    recomputed,
    streamed,
)
from helpers.factories import CASES, ROOT, make_tasks, method
from pipelines.errors import RecipeError
from pipelines.evaluation.evaluate import evaluate
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.recipe_cli import MachineFlags
from pipelines.train import Launcher, engine_for, validated
from pipelines.training.checkpoints import all_checkpoints
from pipelines.training.engines import (
    DDP,
    FSDP2,
    ONE_PROCESS,
    ZERO2,
    ZERO3,
    check_fit,
    checkpoint_format,
    requested_engine,
    unfit,
)

pytestmark = pytest.mark.timeout(900)  # the first test waits for the runs of both fixtures
SHARDED = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
TRAINED = [case for case in CASES if case[1] in ("full", "lora")]
TRAINED.append(("text_classification", "4bit"))


def fsdp_config(folder, state_dict, num_processes=2, **values):
    """Write the shipped FSDP2 config for processes on the CPU."""
    shipped = (ROOT / "accelerate_configs" / "fsdp2.yaml").read_text()
    text = shipped.replace("SHARDED_STATE_DICT", state_dict).replace("bf16", "'no'")
    text = text.replace("use_cpu: false", f"use_cpu: true\nnum_processes: {num_processes}")
    for name, value in values.items():
        text = re.sub(rf"{name}: .*", f"{name}: {value}", text)
    file = folder / f"{state_dict}-{num_processes}.yaml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def recipes(checkpoint, odd_checkpoint, helpdesk):
    """A recipe for each task, full and LoRA."""
    return make_recipes(TRAINED, checkpoint, odd_checkpoint, helpdesk)


@pytest.fixture(scope="module")
def stream(recipes, tmp_path_factory):
    """A recipe that reads a stream."""
    return streamed(recipes["causal_lm-full"], tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def one_process(recipes, stream, tmp_path_factory):
    """The results of one process."""
    folder = tmp_path_factory.mktemp("one")
    for recipe in placed(recipes | {"stream": stream}, folder).values():
        run(recipe)
    return folder


@pytest.fixture(scope="module")
def resumed(recipes, stream, commands, tmp_path_factory):
    """The results of FSDP2 with either form of checkpoints, each run interrupted and resumed.

    With parts as checkpoints there are a stream and activation checkpointing, too.
    """
    folders = {}
    for state_dict, more in zip(
        SHARDED, ({}, recomputed(recipes) | {"stream": stream}), strict=True
    ):
        folders[state_dict] = folder = tmp_path_factory.mktemp(state_dict)
        config = fsdp_config(folder, state_dict)
        runs = interrupted(placed(recipes | more, folder))
        nan = replace(recipes["causal_lm-full"], output_dir=str(folder / "nan"))
        runs.append((nan, "NaNGradientAt(2, rank=1)"))
        done = launch(config, runs, folder / "launch", python=commands.python)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("resuming from checkpoint-4") == len(runs) - 1
        assert done.stdout.count("trained by FSDP2") == 2 * len(runs) - 1
        (folder / "stderr").write_text(done.stderr)
    return folders


@pytest.mark.parametrize("name", [f"{task}-{method}" for task, method in TRAINED])
@pytest.mark.parametrize("state_dict", SHARDED)
def test_an_interrupted_run_of_fsdp2_equals_one_process(one_process, resumed, state_dict, name):
    assert_equal_results(one_process / name, resumed[state_dict] / name)


@pytest.mark.parametrize("name", RECOMPUTED)
def test_fsdp2_computes_activations_again_to_the_results_of_one_process(one_process, resumed, name):
    assert_recomputed(one_process, resumed["SHARDED_STATE_DICT"], name)


def test_an_interrupted_stream_of_fsdp2_equals_one_process(one_process, resumed):
    assert_equal_results(one_process / "stream", resumed["SHARDED_STATE_DICT"] / "stream")


@pytest.mark.parametrize("state_dict", SHARDED)
def test_a_sharded_gradient_that_is_not_finite_stops_all_processes_before_an_update(
    resumed, state_dict
):
    """It is not finite on process 1 alone, and no loss is."""
    errors = (resumed[state_dict] / "stderr").read_text()
    for rank in (0, 1):
        assert f"rank {rank}: weights unchanged: step 3: the gradient norm is" in errors
    assert not (resumed[state_dict] / "nan" / "model.safetensors").exists()


def test_results_of_fsdp2_load_and_score_equal(recipes, resumed):
    for name in recipes:
        evaluation = evaluate(resumed["SHARDED_STATE_DICT"] / name)
        assert evaluation.equal, name


def test_the_score_of_fsdp2_in_bfloat16_is_found_again_in_fp32(recipes, commands, tmp_path):
    names = ("causal_lm-full", "text_classification-4bit")
    chosen = placed({name: recipes[name] for name in names}, tmp_path)
    config = fsdp_config(tmp_path, "FULL_STATE_DICT", mixed_precision="bf16")
    runs = [(recipe,) for recipe in chosen.values()]
    done = launch(config, runs, tmp_path / "launch", python=commands.python)
    assert done.returncode == 0, done.stderr[-3000:]
    for recipe in chosen.values():
        assert evaluate(recipe.folder).equal, recipe.name


def test_tied_weights_are_saved_once(one_process, resumed):
    tensors = load_file(resumed["FULL_STATE_DICT"] / "causal_lm-full" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    config = json.loads((resumed["FULL_STATE_DICT"] / "causal_lm-full/config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]


def test_the_checkpoint_of_a_killed_run_is_resumed_on_other_numbers_of_processes(
    recipes, one_process, commands, tmp_path
):
    """The sharded checkpoint of two processes on one, the whole one on four."""
    recipe = recipes["causal_lm-full"]
    recipe = replace(recipe, train=replace(recipe.train, per_device_train_batch_size=2))
    for state_dict, number in zip(SHARDED, (4, 1), strict=True):
        given = placed({state_dict: recipe}, tmp_path)[state_dict]
        killed = (given, "SignalAt(5, 'SIGKILL', rank=1)")
        config = fsdp_config(tmp_path, state_dict)
        done = launch(config, [killed], tmp_path / "l", python=commands.python)
        assert done.returncode != 0
        steps = [
            int(each.name.removeprefix("checkpoint-"))
            for each in all_checkpoints(given.folder / "checkpoints")
        ]
        assert steps[0] == 4
        config = fsdp_config(tmp_path, state_dict, number)
        changed = replace(given, allow_changed=("world_size",))
        runs = [(given, "Refused()"), (changed,)]
        done = launch(config, runs, tmp_path / "l", python=commands.python)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"had 2, this one has {number}" in done.stderr
        assert "resuming from checkpoint-4" in done.stdout
        assert_equal_results(one_process / "causal_lm-full", given.folder)


def test_a_damaged_shard_of_a_checkpoint_is_noticed(recipes, resumed, tmp_path):
    from helpers.resumable_runs import flip
    from pipelines.training.checkpoints import find_damage, mark_complete

    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / "pytorch_model_fsdp_0").mkdir(parents=True)
    shard = checkpoint / "pytorch_model_fsdp_0" / "__1_0.distcp"
    shard.write_bytes(bytes(100))
    identity = {
        "recipe": {},
        "data": {},
        "world_size": 2,
        "versions": {},
        "run": "a",
        "changed": [],
    }
    mark_complete(checkpoint, identity)
    assert find_damage(checkpoint) is None
    flip(shard)
    assert find_damage(checkpoint) == "__1_0.distcp has changed since it was written"
    shard.unlink()
    assert find_damage(checkpoint) == "__1_0.distcp is missing"


def fsdp(**values):
    """Return what `accelerate launch` sets for FSDP2, with other values."""
    return {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"} | values


@pytest.mark.parametrize(
    ("environment", "engine", "form"),
    [
        ({}, ONE_PROCESS, "ordinary"),
        ({"WORLD_SIZE": "2"}, DDP, "ordinary"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "false"}, DDP, "ordinary"),
        (fsdp(), FSDP2, "FSDP2 SHARDED_STATE_DICT"),
        (fsdp(FSDP_STATE_DICT_TYPE="FULL_STATE_DICT"), FSDP2, "FSDP2 FULL_STATE_DICT"),
    ],
)
def test_the_requested_engine_is_read_from_what_the_launcher_sets(environment, engine, form):
    assert requested_engine(environment) is engine
    assert checkpoint_format(environment) == form


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"FSDP_VERSION": "1"}, "only FSDP2 is supported. Set fsdp_version: 2."),
        ({"FSDP_STATE_DICT_TYPE": "LOCAL_STATE_DICT"}, "LOCAL_STATE_DICT is of one process alone"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading: false"),
        ({"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_WRAP"}, "'TRANSFORMER_WRAP' is none of"),
    ],
)
def test_what_fsdp_would_do_wrongly_is_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        requested_engine(fsdp(**values))


@pytest.mark.parametrize(
    ("name", "options", "engine", "message"),
    [
        ("8bit", {}, FSDP2, "FSDP2 cannot train an 8-bit base: .* multi_gpu or deepspeed_zero2."),
        ("8bit", {}, ZERO3, "DeepSpeed ZeRO-3 cannot train an 8-bit base"),
        ("4bit", {}, ZERO3, "ZeRO-3 cannot train a 4-bit base: .* multi_gpu or fsdp2 or deep"),
        ("4bit", {}, FSDP2, None),
        ("lora", {"optim": "adamw_bnb_8bit"}, FSDP2, "cannot train adamw_bnb_8bit"),
        ("8bit", {}, ZERO2, None),
        ("8bit", {}, DDP, None),
        ("lora", {}, ZERO3, None),
    ],
)
def test_what_an_engine_cannot_train_is_refused_with_what_can(
    helpdesk, name, options, engine, message
):
    task = make_tasks(helpdesk)["text_classification"]
    recipe = Recipe(
        name="r", task=task, model=Model(name_or_path="a/b"), train=Train(**options), **method(name)
    )
    problems = list(unfit(recipe, engine))
    if message is None:
        assert problems == []
    else:
        assert re.search(message, problems[0].message)
    assert not list(unfit(recipe, ONE_PROCESS))


def test_activation_checkpointing_by_recipe_and_config_is_refused(recipes):
    recipe = recipes["causal_lm-full"]
    by_recipe = replace(recipe, train=replace(recipe.train, activation_checkpointing=True))
    by_config = fsdp(FSDP_ACTIVATION_CHECKPOINTING="true")
    check_fit(recipe, by_config)
    check_fit(by_recipe, fsdp())
    with pytest.raises(RecipeError, match="train.activation_checkpointing: .* Use one of the two"):
        check_fit(by_recipe, by_config)


def test_fsdp_on_a_cpu_is_refused_and_not_replaced_by_ddp(recipes, commands, tmp_path):
    """As Accelerate does without a word."""
    recipe = placed(recipes, tmp_path)["causal_lm-full"]
    file = tmp_path / "recipe.json"
    file.write_text(recipe.to_json())
    config = fsdp_config(tmp_path, "FULL_STATE_DICT")
    message = "FSDP2 was requested, and Accelerate trains by DDP on a CPU."
    words = ("gpt2-recipes", "train", file, "--config-file", config)
    assert message in commands.printed(*words, cwd=tmp_path, code=2)
    launcher = [commands.python, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command = [*launcher, "--module", "pipelines.train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert message in done.stderr
    assert not recipe.folder.exists()


@pytest.mark.parametrize(
    ("config", "engine", "num_processes"),
    [
        ("cpu", ONE_PROCESS, 1),
        ("single_gpu", ONE_PROCESS, 1),
        ("cpu_2_processes", DDP, 2),
        ("multi_gpu", DDP, 4),
        ("multi_node_ddp", DDP, 8),
        ("fsdp2", FSDP2, 4),
        ("multi_node_fsdp2", FSDP2, 8),
        ("deepspeed_zero2", ZERO2, 4),
        ("deepspeed_zero3", ZERO3, 4),
    ],
)
def test_each_shipped_config_requests_its_engine_on_the_visible_gpus(
    config, engine, num_processes, monkeypatch, tmp_path
):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("pipelines.training.launcher.not_installed", list)
    monkeypatch.setattr("pipelines.train.count_gpus", lambda: 4)
    nodes = config.startswith("multi_node")
    flags = MachineFlags(config_file=Path(config))
    if nodes:
        flags = replace(flags, num_machines=2, machine_rank=0, main_process_ip="10.0.0.1")
    arguments = validated([*Launcher.of(flags).words, "recipe.py"])
    assert engine_for(arguments) is engine
    assert arguments.num_processes == num_processes
    assert arguments.mixed_precision == ("no" if config.startswith("cpu") else "bf16")


def test_every_shipped_config_is_tested():
    [mark] = test_each_shipped_config_requests_its_engine_on_the_visible_gpus.pytestmark
    tested = {values[0] for values in mark.args[1]}
    assert tested == {file.stem for file in (ROOT / "accelerate_configs").glob("*.yaml")}
