"""ZeRO-2 and ZeRO-3: the steps, checkpoints and results of one process."""

import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from helpers.callbacks import EndAfter
from helpers.engine_runs import (
    RECOMPUTED,
    STEPS,
    assert_equal_results,
    assert_recomputed,
    interrupted,
    launch,
    make_recipes,
    placed,
    recomputed,
    steps_of,
    streamed,
)
from helpers.factories import CASES, ROOT
from helpers.hub_process import environment
from helpers.resumable_runs import weights as bytes_of
from pipelines.errors import EndedEarly, RecipeError
from pipelines.evaluation.evaluate import evaluate
from pipelines.flow import run
from pipelines.recipe.values import Distillation, Scratch
from pipelines.training.checkpoints import all_checkpoints, find_damage, step_of
from pipelines.training.engines import ORDINARY, ZERO2, ZERO3, checkpoint_format, requested_engine
from pipelines.training.engines import unfit as problems_of
from pipelines.training.launcher import check_request, read_request
from pipelines.training.start import launch_notes
from pipelines.training.zero_config import (
    FIELDS,
    FILE,
    PRECISION,
    STAGE,
    complete_config,
    zero_stage,
)

needs_deepspeed = [
    pytest.mark.deepspeed,
    pytest.mark.timeout(900),  # the first test of a stage waits for all its runs
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed, an extra"),
]
USED = {"ACCELERATE_USE_DEEPSPEED": "true"}
TOLERANCES = {"norm": 2e-5, "weights": 1e-5}
"""The second at a learning rate of 1e-3: AdamW's steps are as large as that."""
STAGES = (2, 3)
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
BEST = {"learning_rate": 0.1, "keep": "best", "metric_for_best": "loss", "eval_steps": 1}
"""Steps so large that the loss of the validation rows soon grows."""
STOPPED = {2: "SignalAt(4, rank=1)", 3: "SignalAt(5, 'SIGKILL', rank=1)"}
"""How the last run of a stage ends: with a checkpoint of step 5, or only that of step 4."""


def config_for(folder, stage):
    """Write an Accelerate config of a stage on two processes of the CPU."""
    own = folder / f"zero{stage}.json"
    own.write_text(json.dumps(SECTIONS | {"zero_optimization": ZERO[stage]}))
    file = folder / f"zero{stage}.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\ndeepspeed_config:\n"
        f"  deepspeed_config_file: {own}\n  zero3_init_flag: false\n"
        "use_cpu: true\nnum_machines: 1\nnum_processes: 2\n"
    )
    return file


def trained(stage):
    """Return the names of the recipes that a stage trains."""
    names = [f"{task}-{name}" for task, name in CASES if stage == 2 or name in ("full", "lora")]
    return [*names, "best"]


@pytest.fixture(scope="module")
def recipes(checkpoint, odd_checkpoint, helpdesk):
    """A recipe for each task and method, and one whose best weights are not the last."""
    made = make_recipes(CASES, checkpoint, odd_checkpoint, helpdesk)
    whole = made["text_classification-full"]
    return made | {"best": replace(whole, train=replace(whole.train, **BEST))}


@pytest.fixture(scope="module")
def stream(recipes, tmp_path_factory):
    """A recipe that reads a stream."""
    return streamed(recipes["causal_lm-full"], tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def one_process(recipes, stream, tmp_path_factory):
    """The results of one process, and in "ended" a run that ends after five steps."""
    folder = tmp_path_factory.mktemp("one")
    runs = placed(recipes | {"stream": stream}, folder)
    for recipe in runs.values():
        run(recipe)
    with pytest.raises(EndedEarly):
        run(replace(runs["causal_lm-lora"], output_dir=str(folder / "ended")), [EndAfter(5)])
    return folder


@pytest.fixture(scope="module")
def stages(recipes, stream, one_process, tmp_path_factory):
    """The results of each stage, whose runs are interrupted and resumed.

    Two more stop at a gradient, and half way; ZeRO-2 resumes one of one process.
    """
    folders = {}
    for stage in STAGES:
        folders[stage] = folder = tmp_path_factory.mktemp(f"zero{stage}")
        chosen = {name: recipes[name] for name in trained(stage)} | recomputed(recipes)
        given = placed(chosen | {"stream": stream}, folder)
        runs = interrupted(given)
        whole, lora = recipes["causal_lm-full"], recipes["causal_lm-lora"]
        extra = placed({"nan": whole, "from_one": lora, "stopped": whole}, folder)
        runs.append((extra["nan"], "NaNGradientAt(2, rank=1)"))
        if stage == 2:
            shutil.copytree(one_process / "ended", folder / "from_one")
            runs.append((replace(extra["from_one"], allow_changed=("world_size",)),))
        runs.append((extra["stopped"], STOPPED[stage]))
        done = launch(config_for(folder, stage), runs, folder / "launch")
        (folder / "stdout").write_text(done.stdout)
        (folder / "stderr").write_text(done.stderr)
        assert f"trained by DeepSpeed ZeRO-{stage}" in done.stdout, done.stderr[-3000:]
        assert done.stdout.count("resuming from checkpoint-") == len(given) + (stage == 2)
    return folders


BY_STAGE = [(stage, name) for stage in STAGES for name in trained(stage)]


class TestRuns:
    pytestmark = needs_deepspeed

    @pytest.mark.parametrize(("stage", "name"), BY_STAGE)
    def test_an_interrupted_run_equals_one_process(self, recipes, one_process, stages, stage, name):
        weights = TOLERANCES["weights"] * recipes[name].train.learning_rate / 1e-3
        tolerances = TOLERANCES | {"weights": weights}
        assert_equal_results(one_process / name, stages[stage] / name, **tolerances)
        assert evaluate(stages[stage] / name).equal

    @pytest.mark.parametrize("name", RECOMPUTED)
    @pytest.mark.parametrize("stage", STAGES)
    def test_activations_are_computed_again_to_the_results_of_one_process(
        self, one_process, stages, stage, name
    ):
        assert_recomputed(one_process, stages[stage], name, **TOLERANCES)

    @pytest.mark.parametrize("stage", STAGES)
    def test_an_interrupted_stream_equals_one_process(self, one_process, stages, stage):
        assert_equal_results(one_process / "stream", stages[stage] / "stream", **TOLERANCES)

    @pytest.mark.parametrize("stage", STAGES)
    def test_the_best_weights_are_kept(self, one_process, stages, stage):
        for folder in (one_process, stages[stage]):
            kept = json.loads((folder / "best" / "task.json").read_text())["kept"]
            assert kept["step"] < STEPS

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_gradient_that_is_not_finite_stops_all_processes_before_an_update(
        self, stages, stage
    ):
        """It is not finite on process 1 alone, and no loss is."""
        errors = (stages[stage] / "stderr").read_text()
        for rank in (0, 1):
            assert f"rank {rank}: weights unchanged: step 3: the gradient norm is" in errors
        assert not (stages[stage] / "nan" / "model.safetensors").exists()

    def test_a_run_of_one_process_resumes_under_zero_2(self, one_process, stages):
        """Its optimizer has a group without parameters, which DeepSpeed drops."""
        found = stages[2] / "from_one"
        assert_equal_results(one_process / "causal_lm-lora", found, **TOLERANCES)

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_stopped_run_resumes_on_one_process(
        self, recipes, one_process, stages, stage, tmp_path
    ):
        if stage == 2:
            errors = (stages[2] / "stderr").read_text()
            assert "stopped at step 5 with a checkpoint" in errors
            assert "exitcode  : 75" in errors
        shutil.copytree(stages[stage] / "stopped", tmp_path / "stopped")
        recipe = placed({"stopped": recipes["causal_lm-full"]}, tmp_path)["stopped"]
        run(replace(recipe, allow_changed=("world_size",)))
        assert_equal_results(one_process / "causal_lm-full", recipe.folder, **TOLERANCES)

    def test_a_killed_run_resumes_to_the_same_bytes_and_is_published(
        self, recipes, stages, hub, tmp_path
    ):
        shutil.copytree(stages[3] / "stopped", tmp_path / "stopped")
        whole = recipes["causal_lm-full"]
        runs = placed(
            {"stopped": replace(whole, push_to="local/stopped"), "whole": whole}, tmp_path
        )
        env = environment(hub, tmp_path / "home")
        config, runs_alone = config_for(tmp_path, 3), [(each,) for each in runs.values()]
        done = launch(config, runs_alone, tmp_path / "launch", env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("resuming from checkpoint-4") == 1
        assert bytes_of(runs["stopped"].folder) == bytes_of(runs["whole"].folder)
        published = hub.repos["models", "local/stopped"].commit("main")["files"]
        assert "model.safetensors" in published


BF16_FLAGS = ("--mixed_precision", "bf16", "--main_process_port", "0")


@pytest.fixture(scope="module")
def in_bfloat16(recipes, one_process, tmp_path_factory):
    """The results in bfloat16 of one process, and of each stage."""
    folders = {}
    names = ("causal_lm-full", "causal_lm-lora", "question_answering-8bit")
    teacher = Distillation(teacher=str(one_process / "text_classification-lora"))
    distilled = replace(recipes["text_classification-lora"], distillation=teacher)
    for stage in (None, *STAGES):
        folders[stage] = folder = tmp_path_factory.mktemp(f"bf16-{stage}")
        given = placed(
            {each: recipes[each] for each in names if each in trained(stage or 2)}, folder
        )
        given |= placed({"distilled": distilled}, folder)
        config = config_for(folder, stage) if stage else ROOT / "accelerate_configs" / "cpu.yaml"
        runs = [(recipe,) for recipe in given.values()]
        done = launch(config, runs, folder / "launch", machine=BF16_FLAGS)
        assert done.returncode == 0, done.stderr[-3000:]
    return folders


class TestBfloat16:
    pytestmark = needs_deepspeed

    @pytest.mark.parametrize(
        ("stage", "name"),
        [
            *((stage, name) for stage in STAGES for name in ("causal_lm-full", "causal_lm-lora")),
            (2, "question_answering-8bit"),
        ],
    )
    def test_the_score_is_found_again_in_fp32(self, in_bfloat16, stage, name):
        assert evaluate(in_bfloat16[stage] / name).equal

    @pytest.mark.parametrize("stage", STAGES)
    def test_weights_are_not_rounded_before_the_first_step(self, in_bfloat16, one_process, stage):
        """It is that of one process in bfloat16, and not that in fp32."""
        first = {
            place: steps_of(place / "causal_lm-full")[0]
            for place in (in_bfloat16[None], in_bfloat16[stage], one_process)
        }
        expected, found, fp32 = first.values()
        for value, tolerance in (("loss", 1e-6), ("grad_norm", 1e-6)):
            assert found[value] == pytest.approx(expected[value], rel=tolerance)
            assert found[value] != pytest.approx(fp32[value], rel=10 * tolerance)

    @pytest.mark.parametrize("name", ["causal_lm-lora", "distilled"])
    @pytest.mark.parametrize("stage", STAGES)
    def test_an_adapter_equals_that_of_one_process(self, in_bfloat16, stage, name):
        assert_equal_results(in_bfloat16[None] / name, in_bfloat16[stage] / name, **TOLERANCES)


def launch_on_two_machines(config, run_given, folder):
    """Start a run as two machines do, each in a folder of its own; return their processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(port))

    def start(rank):
        machine = (*address, "--machine_rank", str(rank))
        return launch(config, [run_given], folder / f"machine-{rank}", machine=machine)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(start, (0, 1)))


class TestMachines:
    pytestmark = needs_deepspeed

    def test_machines_without_a_shared_disk_resume_from_checkpoints_of_their_own(
        self, recipes, one_process, tmp_path
    ):
        config = config_for(tmp_path, 3)
        several = "deepspeed_config:\n  deepspeed_multinode_launcher: standard\n"
        text = config.read_text().replace("num_machines: 1", "num_machines: 2")
        config.write_text(text.replace("deepspeed_config:\n", several))
        recipe = replace(recipes["causal_lm-full"], output_dir="out")
        launch_on_two_machines(config, (recipe, "SignalAt(4)"), tmp_path)
        for rank in (0, 1):
            [last, _] = all_checkpoints(tmp_path / f"machine-{rank}" / "out" / "checkpoints")
            assert step_of(last) == 5
            assert find_damage(last) is None
            assert (last / "optimizer.pt").stat().st_size > 300_000
        for done in launch_on_two_machines(config, (recipe,), tmp_path):
            assert done.returncode == 0, done.stderr[-3000:]
        found = tmp_path / "machine-0" / "out"
        assert_equal_results(one_process / "causal_lm-full", found, **TOLERANCES)


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


def test_ranks_compare_the_stage_that_a_file_of_deepspeed_names(recipes, monkeypatch, tmp_path):
    notes = []
    for stage in STAGES:
        file = tmp_path / "ds.json"  # the same path on every machine, and another content
        file.write_text(json.dumps(SECTIONS | {"zero_optimization": ZERO[stage]}))
        for name, value in (USED | {FILE: str(file)}).items():
            monkeypatch.setenv(name, value)
        notes.append(launch_notes(recipes["causal_lm-full"]))
    assert [each.pop("engine") for each in notes] == ["DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3"]
    assert notes[0] == notes[1]


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


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("deepspeed_config_file,mixed_precision", "--mixed_precision bf16"),
        ("deepspeed_config_file,zero_stage", "zero_stage.*ds.json decides it"),
        ("offload_param_nvme_path,deepspeed_config_file", "offload_param_nvme_path.*decides it"),
    ],
)
def test_a_config_that_says_what_a_file_of_deepspeed_decides_is_refused(names, message, tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(SECTIONS | {"zero_optimization": {"stage": 2}}))
    with pytest.raises(RecipeError, match=message):
        zero_stage({FILE: str(file), FIELDS: names})
    assert zero_stage({FILE: str(file), FIELDS: "deepspeed_config_file,zero3_init_flag"}) == 2


def test_a_type_of_communication_that_bfloat16_does_not_heed_is_refused(tmp_path):
    file = tmp_path / "ds.json"
    values = {"zero_optimization": {"stage": 2}, "communication_data_type": "bf16"}
    file.write_text(json.dumps(SECTIONS | values))
    assert zero_stage({FILE: str(file)}) == 2
    with pytest.raises(RecipeError, match="has no effect in bfloat16"):
        zero_stage({FILE: str(file), PRECISION: "bf16"})


def test_a_config_of_deepspeed_gets_autocast_and_a_bucket_for_the_gradients_there_are():
    config = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
    complete_config(config, num_trained=1000, bf16=True)
    assert config["bf16"] == {"enabled": False}
    assert config["torch_autocast"]["dtype"] == "bfloat16"
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    for given, expected in (({}, 50_000_000), ({"reduce_bucket_size": 7}, 7)):
        config = {"zero_optimization": given}
        complete_config(config, num_trained=10**9, bf16=False)
        assert config == {"zero_optimization": {"reduce_bucket_size": expected}}


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
def test_an_optimizer_with_a_state_that_cannot_be_sharded_is_refused(engine, optim, recipes):
    recipe = recipes["causal_lm-full"]
    model = Scratch(size="tiny", n_positions=128)  # Muon is for random weights
    recipe = replace(recipe, model=model, train=replace(recipe.train, optim=optim))
    (problem,) = problems_of(recipe, engine)
    assert problem.path == "train.optim"
    assert problem.message.endswith("Use --config-file multi_gpu.")
