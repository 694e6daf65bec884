"""What pipelines/training/upstream.py relies on is still so in the libraries."""

import inspect

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from trl import DPOTrainer, SFTTrainer

from pipelines.training.upstream import (
    HookedTrainer,
    WithEncodedRows,
    WithoutTelemetry,
    save_on_every_caller,
    use_one_device,
)


class Order(HookedTrainer):
    """Notes what happens, in its order."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def check_gradients(self, norm):
        self.seen.append(("checked", float(norm)))

    def writing_checkpoint(self):
        trainer, folder = self, f"checkpoint-{self.state.global_step}"

        class Noting:
            def __enter__(self):
                trainer.seen.append(("writes", (trainer.folder / folder).exists()))

            def __exit__(self, *error):
                names = {file.name for file in (trainer.folder / folder).iterdir()}
                trainer.seen.append(("wrote", names))

        return Noting()


class Steps(TrainerCallback):
    """Notes updates and what callbacks are told of checkpoints."""

    def __init__(self, seen):
        self.seen = seen

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append(("updates",))

    def on_save(self, args, state, control, **kwargs):
        self.seen.append(("saved",))


@pytest.fixture
def trainer(tmp_path):
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 97, "n_positions": 16}
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    made = Order(
        model=GPT2LMHeadModel(GPT2Config(**sizes)),
        args=TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            max_steps=2,
            save_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=rows,
    )
    made.folder = tmp_path
    made.add_callback(Steps(made.seen))
    return made


COMPLETE = {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"}


def test_gradients_are_checked_before_each_update_and_checkpoints_held(trainer):
    trainer.train()
    names = [each[0] for each in trainer.seen]
    assert names == ["checked", "updates", "checked", "updates", "writes", "wrote", "saved"]
    assert all(each[1] > 0 for each in trainer.seen if each[0] == "checked")
    [(_, existed)] = [each for each in trainer.seen if each[0] == "writes"]
    [(_, files)] = [each for each in trainer.seen if each[0] == "wrote"]
    assert not existed
    assert files >= COMPLETE


def test_a_checkpoint_can_be_written_after_the_training(trainer):
    trainer.args.save_strategy = "no"
    trainer.train()
    trainer.save_checkpoint()
    assert {file.name for file in (trainer.folder / "checkpoint-2").iterdir()} >= COMPLETE
    assert trainer.seen[-2:] == [("writes", False), trainer.seen[-1]]


def test_the_weights_of_a_checkpoint_can_be_loaded_after_the_training(trainer):
    trainer.args.save_steps = trainer.state.save_steps = 1
    trainer.train()
    last = {name: each.clone() for name, each in trainer.model.named_parameters()}
    saved = load_file(trainer.folder / "checkpoint-1" / "model.safetensors")
    trainer.load_weights(trainer.folder / "checkpoint-1")
    found = dict(trainer.model.named_parameters())
    assert not all(torch.equal(found[name], last[name]) for name in saved)
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_gradients_are_checked_where_they_are_not_clipped(trainer):
    trainer.args.max_grad_norm = 0.0
    trainer.train()
    assert [each[0] for each in trainer.seen][:2] == ["checked", "updates"]


def test_inputs_are_put_on_the_device_of_the_model(trainer):
    batch = trainer.prepare_inputs({"input_ids": torch.tensor([[1]])})
    assert batch["input_ids"].device == trainer.args.device


@pytest.mark.parametrize(
    ("hooks", "name", "base", "arguments"),
    [
        (HookedTrainer, "_save_checkpoint", Trainer, ["self", "model", "trial"]),
        (HookedTrainer, "_save", Trainer, ["self", "output_dir", "state_dict"]),
        (HookedTrainer, "_get_grad_norm", Trainer, ["self", "model", "grad_norm"]),
        (WithoutTelemetry, "_send_telemetry", SFTTrainer, ["self"]),
        (WithoutTelemetry, "_send_telemetry", DPOTrainer, ["self"]),
    ],
)
def test_overridden_methods_are_still_upstreams(hooks, name, base, arguments):
    assert list(inspect.signature(getattr(base, name)).parameters) == arguments
    assert list(inspect.signature(getattr(hooks, name)).parameters) == arguments


def test_callers_call_them_with_these_arguments():
    trainer = inspect.getsource(Trainer)
    assert "self._save_checkpoint(model, trial)" in trainer
    assert "self._get_grad_norm(model, grad_norm=grad_norm)" in trainer
    assert "self._prepare_inputs(inputs)" in trainer
    assert trainer.count("self._save(output_dir, state_dict=state_dict)") == 3
    assert "self._send_telemetry()" in inspect.getsource(inspect.getmodule(SFTTrainer.__mro__[1]))
    calls = inspect.getsource(DPOTrainer.__init__)
    assert "self._prepare_dataset(train_dataset, processing_class, args," in calls
    assert "self._prepare_dataset(eval_dataset, processing_class, args," in calls


def test_encoded_rows_are_taken_as_they_are():
    parameters = list(inspect.signature(DPOTrainer._prepare_dataset).parameters)
    assert parameters == ["self", "dataset", "processing_class", "args", "dataset_name"]
    rows = [{"prompt_ids": [1]}]
    assert WithEncodedRows()._prepare_dataset(rows, None, None, "train") is rows


@pytest.mark.parametrize(
    ("words", "multi_gpu", "num_processes"),
    [
        (["--multi_gpu", "--num_processes", "2", "script.py"], True, 2),
        (["--cpu", "--num_processes", "1", "script.py", "--flag"], False, 1),
    ],
)
def test_the_launcher_says_how_many_processes_it_would_start(words, multi_gpu, num_processes):
    from accelerate.commands import launch

    from pipelines.training.launch_upstream import arguments_with_config

    assert "_validate_launch_command(args)" in inspect.getsource(launch.launch_command)
    arguments = arguments_with_config(words)
    assert (bool(arguments.multi_gpu), arguments.num_processes) == (multi_gpu, num_processes)


def test_the_launcher_refuses_a_gpu_and_a_cpu_at_once():
    from pipelines.training.launch_upstream import arguments_with_config

    with pytest.raises(ValueError, match="multi_gpu"):
        arguments_with_config(["--cpu", "--multi_gpu", "script.py"])


def test_save_pretrained_asks_the_model_whether_a_rank_writes(checkpoint, tmp_path):
    """transformers 5 answers yes on rank 0 alone, with `save_on_each_node` too."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    asked = []
    model.should_save_on_this_rank = asked.append  # says no
    model.save_pretrained(tmp_path / "none", is_main_process=True)
    assert asked == [True]
    assert not list((tmp_path / "none").glob("*.safetensors"))
    save_on_every_caller(model)
    model.save_pretrained(tmp_path / "whole", is_main_process=True)
    assert list((tmp_path / "whole").glob("*.safetensors"))


def test_a_process_that_sees_several_devices_takes_one(tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4
    )
    use_one_device(arguments)
    assert arguments.n_gpu == 0
    arguments._n_gpu = 2  # as on a machine with two
    assert arguments.train_batch_size == 8
    use_one_device(arguments)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 4)
