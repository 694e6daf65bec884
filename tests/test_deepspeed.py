"""ZeRO-2 and ZeRO-3: the steps, checkpoints and results of one process."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from transformers import TrainerCallback

from helpers.factories import CASES, ROOT, make_tasks, method
from helpers.resumable_runs import weights
from pipelines.errors import EndedEarly, RecipeError
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


def launch(config, helper, *words):
    """Run a file of tests/helpers by `accelerate launch`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    return subprocess.run(
        [*map(str, command), str(ROOT / "tests" / "helpers" / helper), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=280,
    )


def schedule_of(index):
    """Return the fields of a schedule; the cosine one accumulates two batches on each process."""
    if index % 2:
        return {"per_device_train_batch_size": 4}
    cosine = {"lr_scheduler_type": "cosine", "min_learning_rate": 1e-4}
    return cosine | {"per_device_train_batch_size": 2}


def recipe_of(task, name, checkpoint, helpdesk, folder, index=0, **train):
    """Return a run of three steps, with a checkpoint and an evaluation after the second."""
    options = {"learning_rate": 1e-3, "max_steps": 3, "warmup_steps": 1, "global_batch_size": 8}
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
        file = place / "recipes.json"
        file.write_text(json.dumps([recipe.to_json() for recipe in recipes.values()]))
        done = launch(config, "run_all.py", file)
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


NO_GRADIENT = ("c_attn.bias", "qa_outputs.bias", "ln_f.bias")
"""Parameters that a softmax ignores in part: AdamW makes steps of the rounding of their zeros."""


def assert_same_weights(found, expected):
    """Compare two results, in which tied weights are once."""
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
        assert len(expected) == len(found) == 3
        for one, two in zip(expected, found, strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-5)
            assert two["learning_rate"] == pytest.approx(one["learning_rate"], rel=1e-12)

    def test_the_result_has_the_weights_of_one_process(self, runs, stage, task, name):
        assert_same_weights(runs[stage][task, name], runs["one"][task, name])

    def test_the_result_scores_what_the_run_says(self, runs, stage, task, name):
        from pipelines.evaluation.evaluate import evaluate

        assert evaluate(runs[stage][task, name]).equal


def interrupt(recipe, step):
    """Run a recipe in this process until a checkpoint of a step."""
    from pipelines.flow import run

    class End(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step + 1:
                raise EndedEarly

    with pytest.raises(EndedEarly):
        run(recipe, [End()])


def run_by(config, recipe, *calls):
    """Run a recipe by an engine, with callbacks of tests/helpers/callbacks.py."""
    file = config.parent / "recipe.json"
    file.write_text(recipe.to_json())
    return launch(config, "run_recipe.py", file, *calls)


INTERRUPTED = [
    (2, "text_classification", "lora", "SignalAt(1)", "stopped at step 2 with a checkpoint"),
    (3, "causal_lm", "full", "SignalAt(2, 'SIGKILL', rank=1)", ""),
]
"""A signal is heeded at the end of its step; after a kill the last checkpoint counts."""


@pytest.mark.parametrize(("stage", "task", "name", "call", "message"), INTERRUPTED)
class TestCheckpoints:
    pytestmark = needs_deepspeed

    def test_a_run_resumes_by_the_same_and_by_another_engine(
        self, stage, task, name, call, message, checkpoint, helpdesk, tmp_path
    ):
        from pipelines.flow import run

        def recipe(place):
            made = recipe_of(task, name, checkpoint, helpdesk, tmp_path / place, stage, keep="last")
            made.folder.parent.mkdir()
            return made

        config = config_for(tmp_path, stage)
        whole, again, alone, from_one = map(recipe, ("whole", "again", "alone", "from_one"))
        assert run_by(config, whole).returncode == 0
        done = run_by(config, again, call)
        assert done.returncode != 0
        assert message in done.stderr
        shutil.copytree(again.folder, alone.folder)
        interrupt(from_one, 2)
        alone, from_one = (
            replace(each, allow_changed=("world_size",)) for each in (alone, from_one)
        )
        for each in (again, from_one):
            done = run_by(config, each)
            assert "resuming from checkpoint-" in done.stdout, done.stderr[-2000:]
        assert run(alone)["loss"] > 0
        assert weights(again.folder) == weights(whole.folder)
        for each in (alone, from_one):
            assert [row["step"] for row in steps_of(each.folder)] == [1, 2, 3]
            assert_same_weights(each.folder, whole.folder)


@pytest.mark.parametrize("stage", [2, 3])
class TestNonFinite:
    pytestmark = needs_deepspeed

    def test_a_gradient_that_is_not_finite_stops_the_run(
        self, stage, checkpoint, helpdesk, tmp_path
    ):
        whole = ZERO[stage] | {"stage3_param_persistence_threshold": 10**6}
        config = config_for(tmp_path, stage, zero_optimization=whole)
        recipe = recipe_of("causal_lm", "full", checkpoint, helpdesk, tmp_path)
        done = run_by(config, recipe, "NaNAt(2)")
        assert "step 3: the gradient norm is" in done.stderr, done.stderr[-2000:]
        assert "the update was not made" in done.stderr
        assert f"ZeRO-{stage}" in done.stdout


class TestUpstream:
    pytestmark = needs_deepspeed

    def test_names_inside_deepspeed_are_still_there(self):
        import inspect

        from deepspeed.runtime.utils import combine_grad_norm_groups
        from deepspeed.runtime.zero import parameter_offload, stage3, stage_1_and_2
        from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer as Stage2

        assert combine_grad_norm_groups([torch.tensor(3.0), torch.tensor(4.0)]) == 5
        assert combine_grad_norm_groups([torch.tensor(3.0), torch.tensor(-1.0)]) == float("inf")
        for module, text in (
            (stage3, "norm_groups = self._get_norm_groups()"),
            (stage3, "self.fp32_partitioned_groups_flat"),
            (stage_1_and_2, "scaled_global_grad_norm = self.scaled_global_norm()"),
            (stage_1_and_2, "self.single_partition_of_fp32_groups"),
        ):
            assert text in inspect.getsource(module)
        assert "_hp_optimizer_states_linked" in inspect.getsource(
            Stage2._lazy_init_hp_params_optimizer_state
        )
        assert isinstance(parameter_offload.FWD_MODULE_STACK, list)
        offload = parameter_offload.DeepSpeedZeRoOffload
        assert "fwd_pre_hook.remove()" in inspect.getsource(offload._remove_module_hooks)
        assert "FWD_MODULE_STACK.append" in inspect.getsource(offload.setup_zero_stage3_hooks)

    def test_transformers_finds_a_config_that_is_announced(self):
        from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

        from pipelines.training.zero import announced

        class Config:
            def is_zero3(self):
                return True

        config = Config()
        assert not is_deepspeed_zero3_enabled()
        with announced(config):
            assert is_deepspeed_zero3_enabled()
            with announced(None):
                assert not is_deepspeed_zero3_enabled()
            assert is_deepspeed_zero3_enabled()
        assert not is_deepspeed_zero3_enabled()


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
    with pytest.raises(RecipeError, match="no option zero_stge. Did you mean zero_stage?"):
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
