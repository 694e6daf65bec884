"""What makes a run fast changes nothing but rounding, and does what it claims."""

import platform
import resource
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2ForQuestionAnswering, GPT2LMHeadModel, TrainerCallback

from helpers.factories import ROOT, make_tasks
from pipelines.flow import run
from pipelines.models import linear_cross_entropy
from pipelines.models.attention import SHORT, use_unfused_attention
from pipelines.models.chunked_loss import use_chunked_loss
from pipelines.planning.peak import resident_memory
from pipelines.process import prepare_process, slow_precision
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train

VOCAB, ROWS, LENGTH = 307, 3, 41
MEMORY = ROOT / "tests" / "helpers" / "memory.py"


@pytest.fixture(autouse=True)
def settings_of_torch():
    """Restore what prepare_process sets for good."""
    matmul = torch.backends.mkldnn.matmul
    precision = matmul.fp32_precision
    yield
    matmul.fp32_precision = precision


def language_model():
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "initializer_range": 0.3}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, **sizes, **dropout)
    return GPT2LMHeadModel(config)


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
    labels = ids.clone()
    labels[1, 20:] = -100
    return ids, labels


def by_hand(model):
    """Return the losses (rows, length - 1) and the gradients of their sum, from plain logits."""
    ids, labels = batch()
    logits = model(ids).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
    model.zero_grad()
    losses.sum().backward()
    return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


class Largest(TorchDispatchMode):
    """Note the elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("chunk", [2**25, 10 * VOCAB, 1])
def test_a_chunked_loss_has_the_gradients_of_plain_logits(chunk, monkeypatch):
    model = language_model()
    losses, gradients = by_hand(model)
    monkeypatch.setitem(linear_cross_entropy.CHUNK, "cpu", chunk)
    use_chunked_loss(model)
    ids, labels = batch()
    model.zero_grad()
    total = model(ids, targets=labels).losses
    total.backward()
    assert float(total) == pytest.approx(float(losses.sum()), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        scored = model(ids, targets=labels).losses
    torch.testing.assert_close(scored[:, :-1], losses, rtol=1e-5, atol=1e-5)
    assert not scored[:, -1].any()


def test_a_chunked_loss_in_bfloat16_is_near(monkeypatch):
    model = language_model()
    losses, gradients = by_hand(model)
    use_chunked_loss(model)
    ids, labels = batch()
    for chunk in (2**25, 10 * VOCAB):
        monkeypatch.setitem(linear_cross_entropy.CHUNK, "cpu", chunk)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = model(ids, targets=labels).losses
        total.backward()
        assert float(total) == pytest.approx(float(losses.sum()), rel=1e-2)
        found, expected = model.lm_head.weight.grad, gradients["transformer.wte.weight"]
        assert float((found - expected).norm() / expected.norm()) < 3e-2


def test_logits_of_a_whole_batch_never_exist(monkeypatch):
    monkeypatch.setitem(linear_cross_entropy.CHUNK, "cpu", 10 * VOCAB)
    model = language_model()
    ids, labels = batch()
    with Largest() as plain:
        model(ids)
    assert plain.elements == ROWS * LENGTH * VOCAB
    use_chunked_loss(model)
    with Largest() as training:
        model(ids, targets=labels).losses.backward()
    with torch.no_grad(), Largest() as evaluation:
        model(ids, targets=labels)
    parameters = VOCAB * 32  # of the embeddings, whose gradient is as large
    assert training.elements <= max(parameters, ROWS * LENGTH * 4 * 32)
    assert evaluation.elements <= max(parameters, ROWS * LENGTH * 4 * 32)


def test_a_model_with_a_chunked_loss_gives_logits_without_targets_and_keeps_names_and_ties():
    model = language_model()
    ids, _ = batch()
    names, logits = list(model.state_dict()), model(ids).logits
    use_chunked_loss(model)
    assert torch.equal(model(ids).logits, logits)
    assert list(model.state_dict()) == names
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_has_the_losses_of_an_eager_one(tasks, checkpoint, tmp_path):
    found = []
    for compiles in (False, True):
        recipe = Recipe(
            name="compiled",
            task=tasks["causal_lm"],
            model=Model(name_or_path=str(checkpoint)),
            train=Train(max_steps=3, global_batch_size=8, save_steps=None, torch_compile=compiles),
            output_dir=str(tmp_path / f"compiled-{compiles}"),
        )
        found.append(run(recipe))
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)
    assert found[0]["perplexity"] < found[0]["baseline"]["before training"]


def test_products_stay_in_full_precision():
    torch.manual_seed(0)
    with prepare_process():
        pass  # what it sets for a CPU stays
    left, right, bias = torch.randn(256, 768), torch.randn(768, 512), torch.randn(512)
    exact = left.double() @ right.double() + bias.double()
    for found in (left @ right + bias, torch.addmm(bias, left, right)):
        assert float((found - exact).abs().max() / exact.abs().max()) < 3e-6


@pytest.mark.parametrize("num_tokens", [SHORT, SHORT + 1])
def test_a_prepared_cpu_finds_the_same_losses_and_gradients(num_tokens):
    def found(*, prepared):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=97, n_layer=2, n_head=4, n_embd=128, initializer_range=0.1)
        model = GPT2ForQuestionAnswering(config).eval()
        if prepared:
            with prepare_process():
                pass
            use_unfused_attention(model, num_tokens)
        ids = torch.randint(0, 97, (4, 60))
        mask = (torch.arange(60) < torch.tensor([[60], [31], [7], [1]])).long()
        places = torch.tensor([3, 30, 6, 0])
        out = model(ids, attention_mask=mask, start_positions=places, end_positions=places)
        out.loss.backward()
        return float(out.loss), torch.cat([p.grad.flatten() for p in model.parameters()])

    loss, gradients = found(prepared=False)
    prepared_loss, prepared_gradients = found(prepared=True)
    assert prepared_loss == pytest.approx(loss, rel=1e-5)
    assert float((prepared_gradients - gradients).norm() / gradients.norm()) < 1e-5


@pytest.mark.parametrize(
    ("units", "asked", "warned"),
    [({}, "bf16", True), ({"avx512_bf16": True}, "bf16", False), ({}, "no", False)],
)
def test_bfloat16_without_units_for_it_is_warned_of(units, asked, warned, monkeypatch):
    able = {"architecture": "x86_64"} | units
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    assert any("no units" in line for line in slow_precision()) == warned


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")
@pytest.mark.parametrize("prepared", [False, True])
def test_freed_memory_is_kept_for_the_next_step(prepared):
    """A new process: what others have freed would serve in place of new memory.

    Up to 7 tensors of a size may be new ones, before glibc joins what it cuts off to align them.
    """
    command = [sys.executable, MEMORY, "page-faults", str(prepared)]
    faults = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    pages = 4 * 10_000_000 / resource.getpagesize()
    assert faults < pages / 100 if prepared else faults > pages / 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_matrices_of_ever_new_shapes_leave_no_memory_behind():
    """A new process: oneDNN reads its limits at its first product."""
    command = [sys.executable, MEMORY, "new-shapes"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 200e6  # with all of them kept, 690e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["Int8", "NF4"])
def test_a_quantised_base_loads_in_less_memory_than_its_file(kind, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "large")
    config = GPT2Config.from_pretrained(checkpoint, n_layer=8, n_head=8, n_embd=512)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "large")
    command = [sys.executable, MEMORY, "loading", checkpoint, tmp_path / "large", kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    size = (tmp_path / "large/model.safetensors").stat().st_size
    assert size > 100e6
    assert int(done.stdout) * 1024 < 0.6 * size


class FreedBelow(TrainerCallback):
    """Frees 200 MB in the last step, below a tensor that stays; notes memory then and scored."""

    def on_step_end(self, *_, **options):
        large = torch.ones(50_000_000)
        self.above = torch.ones(1000)
        self.with_large = resident_memory()
        del large

    def on_train_end(self, *_, **options):
        self.freed = resident_memory()

    def on_predict(self, *_, **options):
        self.scored = resident_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_an_evaluation_does_not_hold_what_the_training_has_freed(helpdesk, checkpoint, tmp_path):
    watch = FreedBelow()
    recipe = Recipe(
        name="returned",
        task=make_tasks(helpdesk)["text_classification"],
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=1, global_batch_size=8, save_steps=None),
        output_dir=str(tmp_path / "run"),
    )
    run(recipe, callbacks=[watch])
    assert watch.freed > watch.with_large - 100e6  # kept for the next step
    assert watch.scored < watch.with_large - 100e6
