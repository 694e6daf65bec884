"""Where the time of a GPT-2 124M step goes on a GPU, and what each change would win.

    python scripts/gpu/profile.py [PART ...]

Each row is the median of a few calls on their own, in ms; a part that fails leaves the others. OUT
is the folder of profile.json and of the tables of kernels, PROFILE_SECONDS ends it. DEVICE=cpu
tries the flow on a CPU, with small shapes that measure nothing.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICE = os.environ.get("DEVICE", "cuda")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "benchmarks")]
sys.path.remove(str(Path(__file__).resolve().parent))  # Python's own `profile` is not this one
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["BENCHMARK_LITTLE"] = "1"

import torch  # noqa: E402
from machine import best_rate, maker_rate, synchronise  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel  # noqa: E402
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.utils import logging  # noqa: E402

from pipelines.log import quiet_bitsandbytes  # noqa: E402
from pipelines.models import linear_cross_entropy  # noqa: E402
from pipelines.models.chunked_loss import use_chunked_loss  # noqa: E402

GPU = DEVICE == "cuda"
OUT = Path(os.environ.get("OUT", "."))
DEADLINE = time.monotonic() + float(os.environ.get("PROFILE_SECONDS", "inf"))
BATCH, LENGTH = (16, 1024) if GPU else (2, 64)
LAYERS, WIDTH, VOCABULARY = (12, 768, 50257) if GPU else (2, 64, 1001)
PADDED = -(-VOCABULARY // 64) * 64
HEADS = WIDTH // 64
FLOPS = 6 * (LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH) + 12 * LAYERS * WIDTH * LENGTH
"""Of a token's training step."""
CAUSAL = "causal, no mask"
AttentionInterface.register(CAUSAL, sdpa_attention_forward)  # for which transformers makes no mask
ROWS: dict[str, dict[str, Any]] = {}


def record(name: str, seconds: float, **more: Any) -> None:
    """Print a row and write all of them."""
    ROWS[name] = {"ms": round(1000 * seconds, 3)} | more
    extra = ", ".join(f"{key} {value}" for key, value in more.items())
    print(f"{name:60} {1000 * seconds:10.3f} ms  {extra}", flush=True)
    (OUT / "profile.json").write_text(json.dumps(ROWS, indent=1))


def timed(call: Callable[[], Any], *, warmups: int = 3, repeats: int = 10) -> float:
    """Return the median of the seconds of a call, to the end of the device's work."""
    found = []
    for number in range(warmups + repeats):
        synchronise(DEVICE)
        start = time.perf_counter()
        call()
        synchronise(DEVICE)
        if number >= warmups:
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def free() -> None:
    """Free what earlier rows hold, and count the peak of memory from here."""
    gc.collect()
    torch.compiler.reset()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_megabytes() -> int:
    """Return the peak of a GPU's memory since `free`."""
    return round(torch.cuda.max_memory_allocated() / 1e6) if GPU else 0


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute, or a key of a dictionary, another value inside."""
    if isinstance(owner, dict):
        before = dict(owner)
        owner[name] = value
        try:
            yield
        finally:
            owner.clear()
            owner.update(before)
        return
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def limits() -> None:
    """Measure what the machine can do: products and a copy."""
    size = 8192 if GPU else 256
    for dtype in (torch.bfloat16, torch.float32):
        rate = best_rate(size, dtype, DEVICE)
        record(f"{size}^3, {dtype}", 2 * size**3 / rate, tflops=round(rate / 1e12, 2))
    with replaced(torch.backends.cuda.matmul, "allow_tf32", True):
        rate = best_rate(size, torch.float32, DEVICE)
    record(f"{size}^3, TF32", 2 * size**3 / rate, tflops=round(rate / 1e12, 2))
    source = torch.randn(2**29 if GPU else 2**20, device=DEVICE)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source))
    rate = 2 * source.numel() * source.element_size() / seconds
    record("copy", seconds, terabytes_per_second=round(rate / 1e12, 3))


def head() -> None:
    """Measure products of the head by its classes: GPT-2's 50,257, and padded."""
    hidden = torch.randn(BATCH * LENGTH, WIDTH, device=DEVICE, dtype=torch.bfloat16)
    for classes in (VOCABULARY, PADDED):
        weight = torch.randn(classes, WIDTH, device=DEVICE, dtype=torch.bfloat16)
        logits = hidden @ weight.T
        flops = 2 * len(hidden) * WIDTH * classes
        for name, left, right in (
            ("logits", hidden, weight.T),
            ("gradient of states", logits, weight),
            ("gradient of weights", logits.T, hidden),
        ):
            seconds = timed(lambda left=left, right=right: left @ right)
            tflops = round(flops / seconds / 1e12, 1)
            record(f"head of {classes}, {name}", seconds, tflops=tflops)
        free()


def attention() -> None:
    """Measure a layer's attention, both passes: causal, with a mask, and of documents."""
    shape = (BATCH, HEADS, LENGTH, WIDTH // HEADS)
    q, k, v = (
        torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    document = torch.arange(LENGTH, device=DEVICE) // (LENGTH // 4)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=DEVICE).tril()
    isolated = causal & (document[:, None] == document)

    def call(**options: Any) -> None:
        functional.scaled_dot_product_attention(q, k, v, **options).sum().backward()

    record("attention, causal", timed(lambda: call(is_causal=True)))
    for name, mask in (("causal", causal), ("four documents a row", isolated)):
        dense = mask.expand(BATCH, 1, LENGTH, LENGTH)
        record(f"attention, {name}, dense mask", timed(lambda m=dense: call(attn_mask=m)))
    flat = [each.detach().transpose(1, 2).reshape(-1, HEADS, WIDTH // HEADS) for each in (q, k, v)]
    by_lengths(*(each.requires_grad_() for each in flat))


def by_lengths(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Record torch's attention over the documents of a flat batch, which only GPUs have."""
    if not GPU:
        return
    from torch.nn.attention.varlen import varlen_attn

    size = LENGTH // 4
    ends = torch.arange(0, BATCH * LENGTH + 1, size, device=DEVICE, dtype=torch.int32)

    def call() -> None:
        varlen_attn(q, k, v, ends, ends, size, size, window_size=(-1, 0)).sum().backward()

    record("attention, four documents a row, varlen_attn", timed(call))


@dataclass(frozen=True)
class Step:
    """A training step under bfloat16 autocast, without a Trainer, and what differs in it."""

    loss: str = "own"
    """The project's chunked loss; `whole` has all logits at once, `liger` Liger's own function."""
    classes: int = VOCABULARY
    attention: str | None = None
    compiled: bool = False
    batch: int = BATCH

    def build(self) -> Callable[[], None]:
        """Return what makes a step."""
        torch.manual_seed(0)
        model = gpt2(self.classes)
        if self.attention:
            model.set_attn_implementation(self.attention)
        if self.loss == "own":
            use_chunked_loss(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        ids = torch.randint(0, VOCABULARY, (self.batch, LENGTH), device=DEVICE)
        following = functional.pad(ids[:, 1:], (0, 1), value=-100).flatten()
        loss_of = self.loss_of(model, following)

        def step() -> None:
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = loss_of(ids)
            (loss / ids.numel()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def loss_of(
        self, model: GPT2LMHeadModel, following: torch.Tensor
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return what computes the summed loss of (batch, length) tokens."""
        if self.loss == "liger":
            from liger_kernel.transformers.fused_linear_cross_entropy import (
                LigerFusedLinearCrossEntropyLoss,
            )

            liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
            body = torch.compile(model.transformer) if self.compiled else model.transformer

            def fused(ids: torch.Tensor) -> torch.Tensor:
                states = body(ids).last_hidden_state.flatten(0, 1).bfloat16()
                return liger(model.lm_head.weight.bfloat16(), states, following)

            return fused
        run = torch.compile(model) if self.compiled else model
        if self.loss == "own":
            return lambda ids: run(ids, targets=ids).losses
        return lambda ids: functional.cross_entropy(
            run(ids).logits.flatten(0, 1), following, reduction="sum"
        )


def gpt2(classes: int) -> GPT2LMHeadModel:
    """Return a GPT-2 of random weights."""
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "n_positions": LENGTH}
    config = GPT2Config(
        vocab_size=classes,
        activation_function="gelu_pytorch_tanh",
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        **sizes,
        **none,
    )
    return GPT2LMHeadModel(config).to(DEVICE).train()


def measure(name: str, step: Step) -> None:
    """Record a step; one that fails is told, and the next one is measured."""
    if time.monotonic() > DEADLINE:
        print(f"{name}: no time left")
        return
    free()
    try:
        call = step.build()
        start = time.perf_counter()
        call()
        synchronise(DEVICE)
        first = time.perf_counter() - start
        seconds = timed(call, warmups=3, repeats=5)
    except Exception as error:  # of one of many rows
        print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return
    tokens = step.batch * LENGTH
    rate = maker_rate(torch.cuda.get_device_name()) if GPU else None
    mfu = f"{FLOPS * tokens / seconds / rate:.1%}" if rate else "unknown"
    record(
        name,
        seconds,
        mfu=mfu,
        tokens_per_second=round(tokens / seconds),
        peak_mb=peak_megabytes(),
        first_step_seconds=round(first, 1),
    )


def steps() -> None:
    """Measure steps with one change at a time."""
    measure("step", Step())
    with replaced(linear_cross_entropy, "has_kernel", lambda device: False):
        measure("step, loss without Liger's kernel", Step())
    with replaced(linear_cross_entropy.ALIGNED, "cuda", 1):
        measure("step, classes not padded", Step())
    with replaced(linear_cross_entropy.CHUNK, DEVICE, 2**25):
        measure("step, chunks of 2^25 logits", Step())
    measure("step, all logits at once", Step(loss="whole"))
    measure(f"step, all logits at once, {PADDED} classes", Step(loss="whole", classes=PADDED))
    measure("step, Liger's own loss", Step(loss="liger"))
    measure("step, no mask", Step(attention=CAUSAL))
    measure("step, twice the batch", Step(batch=2 * BATCH))
    measure("step, compiled", Step(compiled=True))
    measure("step, compiled, no mask", Step(compiled=True, attention=CAUSAL))
    everything = Step(loss="whole", classes=PADDED, compiled=True, attention=CAUSAL)
    measure(f"step, compiled, no mask, all logits, {PADDED} classes", everything)
    measure("step, compiled, no mask, Liger's own loss", Step("liger", VOCABULARY, CAUSAL, True))
    twice = Step(compiled=True, attention=CAUSAL, batch=2 * BATCH)
    measure("step, compiled, no mask, twice the batch", twice)


def kernels() -> None:
    """List the kernels of an eager step that take longest."""
    write_kernels("step", Step().build())


def write_kernels(name: str, call: Callable[[], None]) -> None:
    """Write the table of the kernels of a call, and print its beginning."""
    for _ in range(3):
        call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    with profile(activities=activities) as found:
        call()
        synchronise(DEVICE)
    key = "self_device_time_total" if GPU else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=80)
    (OUT / f"kernels_{name}.txt").write_text(table)
    print("\n".join(line[:160] for line in table.splitlines()[:24]), flush=True)


def quantised() -> None:
    """Measure LoRA on GPT-2 124M in fp32, 8 and 4 bits, under bfloat16 autocast."""
    quiet_bitsandbytes()
    logging.set_verbosity_error()  # of the head that the checkpoint lacks
    with tempfile.TemporaryDirectory() as folder:
        gpt2(VOCABULARY).save_pretrained(folder)
        for name in ("fp32", "8bit", "4bit"):
            free()
            call, rows = lora_step(folder, name)
            for tf32 in (False, True):
                with replaced(torch.backends.cuda.matmul, "allow_tf32", tf32):
                    seconds = timed(call, warmups=2, repeats=5)
                title = f"LoRA on {name}{', TF32' if tf32 else ''}"
                rate = round(rows / seconds)
                record(title, seconds, rows_per_second=rate, peak_mb=peak_megabytes())
            if name == "8bit":
                write_kernels("8bit", call)


def lora_step(folder: str, precision: str) -> tuple[Callable[[], None], int]:
    """Return what makes a classification step on a base of a precision, and its rows."""
    from transformers import GPT2ForSequenceClassification

    from pipelines.data.source import DatasetSource
    from pipelines.hub.load import QUANTIZATIONS
    from pipelines.models.adapters import add_adapter
    from pipelines.models.quantization import quantization_config
    from pipelines.recipe.recipe import Recipe
    from pipelines.recipe.values import Lora, Model
    from pipelines.tasks.text_classification import TextClassification

    kind, rows, length = QUANTIZATIONS.get(precision), *((64, 128) if GPU else (4, 16))
    task = TextClassification(dataset=DatasetSource(path="rows.csv"), max_length=length)
    recipe = Recipe(
        name="profile", task=task, model=Model(name_or_path=folder), lora=Lora(), quantization=kind
    )
    base = GPT2ForSequenceClassification.from_pretrained(
        folder,
        pad_token_id=0,
        quantization_config=quantization_config(kind),
        device_map={"": DEVICE} if kind and GPU else None,
    )
    model = add_adapter(base if kind else base.to(DEVICE), recipe).to(DEVICE).train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(1, VOCABULARY, (rows, length), device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        logits.float().logsumexp(1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, rows


PARTS = {part.__name__: part for part in (limits, head, attention, kernels, quantised, steps)}


def main() -> None:
    """Measure the parts that are asked for, or all; exit with 1 if one of them failed."""
    failed = False
    for name in sys.argv[1:] or PARTS:
        if time.monotonic() > DEADLINE:
            print(f"{name}: no time left")
            continue
        print(f"-- {name}: {PARTS[name].__doc__}", flush=True)
        free()
        try:
            PARTS[name]()
        except Exception:  # the other parts are measured
            traceback.print_exc(file=sys.stdout)
            failed = True
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
