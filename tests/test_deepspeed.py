"""ZeRO-2 and ZeRO-3: the steps, checkpoints and results of one process."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from helpers.factories import CASES, ROOT, make_tasks, method
from helpers.resumable_runs import weights
from pipelines.errors import RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch, Train
from pipelines.training.engines import ORDINARY, ZERO2, ZERO3, checkpoint_format, requested_engine
from pipelines.training.engines import unfit as problems_of
from pipelines.training.launcher import check_request, read_request
from pipelines.training.zero_config import FILE, STAGE, zero_stage

needs_deepspeed = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed, an extra"),
]
USED = {"ACCELERATE_USE_DEEPSPEED": "true"}
ZERO = {  # the second shards every parameter: those of the models here are small
    2: {"stage": 2},
    3: {"stage": 3, "stage3_param_persistence_threshold": 0},
}
SECTIONS = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


def config_for(folder, stage, **options):
    """Write an Accelerate config of a stage on two processes of the CPU."""
    own = folder / f"zero{stage}.json"
    own.write_text(json.dumps(SECTIONS | {"zero_optimization": ZERO[stage]} | options))
    file = folder / f"zero{stage}.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\ndeepspeed_config:\n"
        f"  deepspeed_config_file: {own}\n  zero3_init_flag: false\n"
        "use_cpu: true\nnum_machines: 1\nnum_processes: 2\nmain_process_port: 0\n"
    )
    return file


def launch(config, recipes, folder, *options):
    """Run recipes by tests/helpers/run_engine.py."""
    file = folder / f"{config.stem}.recipes.json"
    file.write_text(json.dumps([recipe.to_json() for recipe in recipes]))
    words = ["-m", "accelerate.commands.launch", "--config_file", config]
    words += [ROOT / "tests" / "helpers" / "run_engine.py", file, *options]
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )


def schedule_of(index):
    """Return the fields of a schedule; the cosine one accumulates two batches on each process."""
    if index % 2:
        return {"per_device_train_batch_size": 4}
    cosine = {"lr_scheduler_type": "cosine", "min_learning_rate": 1e-4}
    return cosine | {"per_device_train_batch_size": 2}


def recipe_of(task, name, checkpoint, helpdesk, folder, index=0, **train):
    """Return a run of four steps with a checkpoint and an evaluation every two."""
    options = {"learning_rate": 1e-3, "max_steps": 4, "warmup_steps": 1, "global_batch_size": 8}
    options |= {"save_steps": 2, "eval_steps": 2, "logging_steps": 1, "keep": "best"}
    return Recipe(
        name="sharded",
        task=make_tasks(helpdesk)[task],
        model=Model(name_or_path=str(checkpoint)),
        train=Train(**(options | schedule_of(index) | train)),
        output_dir=str(folder / f"{task}-{name}"),
        **method(name),
    )


def trained(stage):
    """Return the cases that a stage trains."""
    return [case for case in CASES if stage == 2 or case[1] in ("full", "lora")]


@pytest.fixture(scope="module")
def odd(tmp_path_factory, checkpoint):
    """A model with an odd number of tokens, whose embedding two processes cannot halve."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.resize_token_embeddings(model.config.vocab_size + 1)
    folder = tmp_path_factory.mktemp("odd")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoint, odd, helpdesk):
    """The folders of runs of every task and method on one process and by both stages."""
    folder = tmp_path_factory.mktemp("zero")
    found = {}
    for layout in ("one", 2, 3):
        place = folder / str(layout)
        place.mkdir()
        cases = CASES if layout == "one" else trained(layout)
        recipes = {
            (task, name): recipe_of(
                task, name, odd if name == "full" else checkpoint, helpdesk, place, index
            )
            for index, (task, name) in enumerate(CASES)
            if (task, name) in cases
        }
        cpu = ROOT / "accelerate_configs" / "cpu.yaml"
        config = cpu if layout == "one" else config_for(place, layout)
        done = launch(config, recipes.values(), place)
        assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
        if layout != "one":
            assert f"trained by DeepSpeed ZeRO-{layout}" in done.stdout
        found[layout] = {case: recipe.folder for case, recipe in recipes.items()}
    return found


def steps_of(folder):
    """Return the logged steps of a run."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "grad_norm" in row]


def tensors_of(folder):
    """Return the weights of a result."""
    from safetensors.torch import load_file

    [file] = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    return load_file(file)


NO_GRADIENT = ("c_attn.bias", "qa_outputs.bias")
"""Parameters that a softmax ignores in part: AdamW makes steps of the rounding of their zeros."""


def assert_same_weights(found, expected):
    """Compare two results, in which tied weights are once."""
    import torch

    found, expected = tensors_of(found), tensors_of(expected)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


BY_STAGE = [(stage, *case) for stage in (2, 3) for case in trained(stage)]


@pytest.mark.parametrize(("stage", "task", "name"), BY_STAGE)
class TestRuns:
    pytestmark = needs_deepspeed

    def test_losses_norms_and_rates_are_those_of_one_process(self, runs, stage, task, name):
        expected, found = (steps_of(runs[each][task, name]) for each in ("one", stage))
        assert len(expected) == len(found) == 4
        for one, two in zip(expected, found, strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-5)
            assert two["learning_rate"] == pytest.approx(one["learning_rate"], rel=1e-12)

    def test_the_result_has_the_weights_of_one_process(self, runs, stage, task, name):
        assert_same_weights(runs[stage][task, name], runs["one"][task, name])

    def test_the_result_scores_what_the_run_says(self, runs, stage, task, name):
        from pipelines.evaluation.evaluate import evaluate

        assert evaluate(runs[stage][task, name]).equal


@pytest.mark.parametrize("stage", [2, 3])
class TestCheckpoints:
    pytestmark = needs_deepspeed

    def test_a_run_resumes_by_the_same_and_by_another_engine(
        self, stage, checkpoint, helpdesk, tmp_path
    ):
        config, cpu = config_for(tmp_path, stage), ROOT / "accelerate_configs" / "cpu.yaml"
        recipes = []
        for place in ("whole", "again", "other", "from_one"):
            (tmp_path / place).mkdir()
            for task, name in (("causal_lm", "full"), ("text_classification", "lora")):
                made = recipe_of(task, name, checkpoint, helpdesk, tmp_path / place, keep="last")
                recipes.append(made)
        whole, again, other, from_one = (recipes[i : i + 2] for i in (0, 2, 4, 6))
        assert launch(config, whole, tmp_path).returncode == 0
        done = launch(config, [*again, *other], tmp_path, "--end-after", 2)
        assert done.stderr.count("ended") >= 4, done.stderr[-2000:]
        assert launch(cpu, from_one, tmp_path, "--end-after", 2).stderr.count("ended") == 2
        done = launch(config, [*again, *from_one], tmp_path)
        assert done.stdout.count("resuming from checkpoint-2") == 4, done.stderr[-2000:]
        done = launch(cpu, other, tmp_path)
        assert done.stdout.count("resuming from checkpoint-2") == 2, done.stderr[-2000:]
        for one, two, three, four in zip(whole, again, other, from_one, strict=True):
            assert weights(one.folder) == weights(two.folder)
            assert_same_weights(three.folder, one.folder)
            assert_same_weights(four.folder, one.folder)

    def test_a_killed_rank_leaves_a_checkpoint_to_resume_from(
        self, stage, checkpoint, helpdesk, tmp_path
    ):
        config = config_for(tmp_path, stage)
        (tmp_path / "whole").mkdir()
        whole = recipe_of("causal_lm", "full", checkpoint, helpdesk, tmp_path / "whole")
        killed = recipe_of("causal_lm", "full", checkpoint, helpdesk, tmp_path)
        assert launch(config, [whole], tmp_path).returncode == 0
        assert launch(config, [killed], tmp_path, "--kill-after", 3).returncode != 0
        done = launch(config, [killed], tmp_path)
        assert "resuming from checkpoint-2" in done.stdout
        assert weights(killed.folder) == weights(whole.folder)

    def test_a_gradient_that_is_not_finite_stops_the_run(
        self, stage, checkpoint, helpdesk, tmp_path
    ):
        options = ZERO[stage] | {"stage3_param_persistence_threshold": 10**6}
        config = config_for(tmp_path, stage, zero_optimization=options)
        recipe = recipe_of("causal_lm", "full", checkpoint, helpdesk, tmp_path)
        file = tmp_path / "recipe.json"
        file.write_text(recipe.to_json())
        words = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        words += [str(ROOT / "tests/helpers/run_recipe.py"), str(file), "NaNAt(2)"]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200)
        assert "step 3: the gradient norm is" in done.stderr, done.stderr[-2000:]
        assert "the update was not made" in done.stderr
        assert "ZeRO" in done.stdout


def test_the_launcher_requests_a_stage():
    assert requested_engine(USED) is ZERO2
    assert requested_engine(USED | {STAGE: "3"}) is ZERO3
    assert checkpoint_format(USED | {STAGE: "3"}) == ORDINARY


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({STAGE: "1"}, "1 is not supported. Use 2 or 3"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "cpu is not supported"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "nvme is not supported"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "Use auto, and --train.max-grad-norm"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--train.global-batch-size"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16 is not supported under DeepSpeed"),
        ({FILE: "nowhere.json"}, "nowhere.json: No such file"),
    ],
)
def test_what_would_train_something_else_is_refused(environment, message):
    with pytest.raises(RecipeError, match=message):
        zero_stage(environment)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, "'optimizer' is not known, or not supported"),
        ({"zero_optimisation": {"stage": 3}}, "did you mean zero_optimization?"),
        ({"gradient_clipping": 1.0}, "1.0 is what the recipe decides"),
        ({"zero_optimization": {"stage": 0}}, "0 is not supported. Use 2 or 3"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "cpu is not supported",
        ),
    ],
)
def test_a_file_of_deepspeed_that_decides_what_the_recipe_does_is_refused(
    values, message, tmp_path
):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(SECTIONS | {"zero_optimization": {"stage": 2}} | values))
    with pytest.raises(RecipeError, match=message):
        zero_stage({FILE: str(file)})


def test_an_unknown_name_in_a_section_of_an_engine_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    text = "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stge: 3\nuse_cpu: true\n"
    file.write_text(text)
    request = read_request(["--config_file", str(file), "a.py"])
    with pytest.raises(RecipeError, match=r"deepspeed_config has 'zero_stge'; did you mean zero_"):
        check_request(request)


def test_deepspeed_that_is_not_installed_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr("pipelines.training.zero_config.find_spec", lambda name: None)
    request = read_request(["--use_deepspeed", "--zero_stage", "2", "a.py"])
    with pytest.raises(RecipeError, match=r'pip install "gpt2-recipes\[deepspeed\]"'):
        check_request(request)


@pytest.mark.parametrize("engine", [ZERO2, ZERO3])
@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "muon"])
def test_an_optimizer_with_a_state_that_cannot_be_sharded_is_refused(
    engine, optim, checkpoint, helpdesk, tmp_path
):
    recipe = recipe_of("causal_lm", "full", checkpoint, helpdesk, tmp_path)
    model = Scratch(size="tiny", n_positions=128)  # Muon is for random weights
    recipe = replace(recipe, model=model, train=replace(recipe.train, optim=optim))
    (problem,) = problems_of(recipe, engine)
    assert problem.path == "train.optim"
    assert problem.message.endswith("Use --config-file multi_gpu.")
