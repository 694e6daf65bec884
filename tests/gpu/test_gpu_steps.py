"""Training steps on a GPU: loss and gradients are those of a CPU in fp32, in every layout."""

from dataclasses import dataclass, replace

import pytest
import torch

import pipelines.training.build
from helpers.callbacks import KeepGradients
from helpers.devices import gradient_distance, process_on
from helpers.factories import CASES, METHODS, TASKS, make_tasks_worth_packing, method
from helpers.train_steps import steps
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch, Train

pytestmark = pytest.mark.gpu
ISOLATED = "isolated_documents"
PACKED = ("text_classification", "question_answering")
EXACT = (1e-4, 1e-3)
ROUNDED = (2e-2, 2e-1)
"""Largest relative differences of losses, and of gradients. bfloat16 rounds by 4e-3 at most, an
8-bit base its inputs by 4e-3 of the largest; both add up over the layers."""


@dataclass(frozen=True)
class Layout:
    """Where and how the steps of a recipe are made."""

    device: str
    precision: str = "no"
    per_device_train_batch_size: int = 8
    packed: bool = True
    optim: str = "adamw_torch_fused"
    compiled: bool = False


@pytest.fixture(scope="module")
def train(tmp_path_factory, checkpoint, helpdesk):
    """Make three steps of a task with a method in a layout, once; return them and gradients."""
    folder = tmp_path_factory.mktemp("steps")
    base = Model(name_or_path=str(checkpoint))
    # Muon trains weights from scratch only
    scratch = Scratch(n_layer=2, n_head=2, n_embd=32, n_positions=64, tokenizer=base)
    tasks = make_tasks_worth_packing(helpdesk, folder)
    tasks[ISOLATED] = replace(tasks["causal_lm"], packing="bfd_split")
    known = {}

    def train(task, name, layout):
        key = (task, name, layout)
        if key not in known:
            recipe = Recipe(
                name="steps",
                task=tasks[task],
                model=scratch if layout.optim == "muon" else base,
                train=Train(
                    learning_rate=1e-3,
                    max_steps=3,
                    warmup_steps=0,
                    global_batch_size=8,
                    per_device_train_batch_size=layout.per_device_train_batch_size,
                    logging_steps=1,
                    save_steps=None,
                    max_grad_norm=1e9,
                    optim=layout.optim,
                    torch_compile=layout.compiled,
                ),
                output_dir=str(folder / "out"),
                **method(name),
            )
            known[key] = make_steps(recipe, layout)
        return known[key]

    return train


def make_steps(recipe, layout):
    """Return the log of a recipe's steps, and the gradients of the first."""
    gradients = KeepGradients()
    with process_on(layout.device, layout.precision), pytest.MonkeyPatch.context() as patch:
        if not layout.packed:
            patch.setattr(pipelines.training.build, "isolates_packed_rows", lambda body: False)
        log = steps(recipe, [gradients])
    assert len(log) == 3
    return log, gradients.kept


def check_same(found, expected, tolerances):
    """Compare the losses and gradient norms of all steps, and the gradients of the first."""
    of_losses, of_gradients = tolerances
    for step, as_expected in zip(found[0], expected[0], strict=True):
        assert step["loss"] == pytest.approx(as_expected["loss"], rel=of_losses)
        assert step["grad_norm"] == pytest.approx(as_expected["grad_norm"], rel=of_gradients)
    assert gradient_distance(found[1], expected[1]) < of_gradients


def tolerances(device, name, precision="no"):
    """Return those of a method: a GPU quantises what it multiplies by an 8-bit base, and 4 bits
    multiply in bfloat16; a CPU multiplies by dequantised weights in fp32."""
    rounds = precision == "bf16" or (device == "cuda" and name in ("8bit", "4bit"))
    return ROUNDED if rounds else EXACT


@pytest.mark.parametrize(("task", "name"), [*CASES, (ISOLATED, "full")])
def test_steps_on_a_gpu_are_those_of_a_cpu_in_fp32(train, device, task, name):
    expected = train(task, name, Layout("cpu"))
    check_same(train(task, name, Layout(device)), expected, tolerances(device, name))


@pytest.mark.parametrize(("task", "name"), [*CASES, (ISOLATED, "full")])
def test_an_accumulated_batch_is_the_whole_one(train, device, task, name):
    whole = train(task, name, Layout(device))
    split = train(task, name, Layout(device, per_device_train_batch_size=2))
    check_same(split, whole, tolerances(device, name))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("task", PACKED)
def test_packed_rows_teach_what_padded_rows_teach(train, device, task, name, precision):
    packed = train(task, name, Layout(device, precision))
    padded = train(task, name, Layout(device, precision, packed=False))
    assert packed[0][0]["packed"] > 0
    assert padded[0][0]["packed"] == 0
    check_same(packed, padded, tolerances(device, name, precision))


@pytest.mark.parametrize(("task", "name"), [*CASES, (ISOLATED, "full")])
def test_bfloat16_is_near_fp32(train, device, task, name):
    exact = train(task, name, Layout(device))
    check_same(train(task, name, Layout(device, "bf16")), exact, ROUNDED)


@pytest.mark.parametrize("task", TASKS)
def test_8_and_4_bits_are_near_full_precision(train, device, task):
    [exact, eight, four] = [
        train(task, name, Layout(device))[0][0]["loss"] for name in ("lora", "8bit", "4bit")
    ]
    assert eight == pytest.approx(exact, rel=2e-2)
    assert four == pytest.approx(exact, rel=2e-1)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_compiled_steps_are_eager_ones(train, device, precision):
    eager = train("causal_lm", "full", Layout(device, precision))
    compiled = train("causal_lm", "full", Layout(device, precision, compiled=True))
    check_same(compiled, eager, tolerances(device, "full", precision))
    torch.compiler.reset()


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "muon"])
def test_other_optimizers_make_the_update_of_a_cpu(train, device, checkpoint, optim):
    expected = train("causal_lm", "full", Layout("cpu", optim=optim))
    check_same(train("causal_lm", "full", Layout(device, optim=optim)), expected, ROUNDED)
