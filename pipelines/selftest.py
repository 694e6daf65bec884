"""Break runs on purpose, on this machine: signals, kills, damaged files, bad rows.

A tiny model is made on the spot; nothing is fetched. Each run is a process of its own, forked from
a server that has imported everything once, so that a kill is a kill and costs a second or two.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from pipelines.data.source import DatasetSource
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Int8, Lora, Model, Scratch, Tokenizer, Train
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.text_classification import TextClassification
from pipelines.terminal import report_errors

OFFLINE = {
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
IMPORTED = [
    "pipelines.flow",
    "pipelines.evaluation.evaluate",
    "pipelines.selftest",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt2.tokenization_gpt2",
    "peft",
]
WEIGHTS = "*model.safetensors"


class Failed(Exception):  # noqa: N818 - the word that is printed
    """A check that did not hold."""


def require(held: bool, otherwise: str) -> None:
    """Raise Failed unless something held."""
    if not held:
        raise Failed(otherwise)


class Fault(Protocol):
    """Something that goes wrong in a run's process."""

    def arrange(self) -> None:
        """Make it go wrong later on."""


@dataclass(frozen=True)
class SignalAt:
    """The process gets a signal before a step."""

    step: int
    number: int = signal.SIGTERM

    def arrange(self) -> None:
        """Send it from within."""
        before_step(self.step, lambda model: os.kill(os.getpid(), self.number))


@dataclass(frozen=True)
class NaNAt:
    """A weight is no number before a step."""

    step: int

    def arrange(self) -> None:
        """Put a NaN among the weights that are trained."""

        def spoil(model: Any) -> None:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

        before_step(self.step, spoil)


@dataclass(frozen=True)
class KillAtWrite:
    """The process is killed when half of a file has been written, named by its path's end."""

    end: str

    def arrange(self) -> None:
        """Wrap the three ways in which the libraries write."""
        import safetensors.torch
        import torch

        def half(write: Callable[..., Any], place: int) -> Callable[..., Any]:
            def written(*arguments: Any, **options: Any) -> Any:
                result = write(*arguments, **options)
                if str(arguments[place]).endswith(self.end):
                    os.truncate(arguments[place], os.path.getsize(arguments[place]) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return written

        def opened(event: str, arguments: tuple[Any, ...]) -> None:
            if event != "open" or "w" not in str(arguments[1]):
                return
            if str(arguments[0]).endswith(self.end):
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(torch, "save", half(torch.save, 1))  # noqa: B010 - on purpose
        module: Any = safetensors.torch
        module.serialize_file = half(module.serialize_file, 1)
        sys.addaudithook(opened)


def before_step(step: int, act: Callable[[Any], None]) -> None:
    """Let the runs of this process do something before a step."""
    from pipelines.training import build as training

    class Faulty(training.StepLog):
        def on_step_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            if state.global_step == step:
                act(model)

    setattr(training, "StepLog", Faulty)  # noqa: B010 - on purpose


def in_process(target: Callable[[], None], fault: Fault | None, output: Path) -> None:
    """Do something with a fault arranged; what it says goes to a file."""
    with output.open("w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    if fault is not None:
        fault.arrange()
    with report_errors():
        target()


@dataclass(frozen=True)
class Running:
    """Run a recipe; a value that can be sent to another process."""

    recipe: str

    def __call__(self) -> None:
        """Run it."""
        from pipelines.flow import run

        run(Recipe.from_json(self.recipe))


@dataclass(frozen=True)
class Scoring:
    """Score a result again, and end with 1 if the score is another."""

    folder: Path

    def __call__(self) -> None:
        """Score it."""
        from pipelines.evaluation.evaluate import evaluate

        if not evaluate(self.folder).equal:
            raise SystemExit(1)


@dataclass(frozen=True)
class Bench:
    """A folder with a little data and a base, and processes that run recipes in it."""

    folder: Path

    def __post_init__(self) -> None:
        os.environ.update(OFFLINE)
        start_server()
        for split, count in (("train", 48), ("test", 16)):
            (self.folder / f"{split}.jsonl").write_text("\n".join(map(ticket, range(count))) + "\n")

    @property
    def source(self) -> DatasetSource:
        """The data."""
        return DatasetSource(path=str(self.folder), eval_split="test")

    def base(self) -> Recipe:
        """Return the recipe of the base."""
        return Recipe(
            name="base",
            task=CausalLM(dataset=self.source, block_size=32),
            model=Scratch(
                n_layer=1,
                n_head=2,
                n_embd=32,
                n_positions=64,
                dropout=0.1,
                tokenizer=Tokenizer(vocab_size=300),
            ),
            train=Train(max_steps=6, learning_rate=1e-2, global_batch_size=8, save_steps=2),
            output_dir=str(self.folder / "base"),
        )

    def adapter(self, name: str) -> Recipe:
        """Return a recipe that tunes an adapter on the 8-bit base."""
        return Recipe(
            name=name,
            task=TextClassification(dataset=self.source, max_length=32),
            model=Model(name_or_path=str(self.folder / "base")),
            quantization=Int8(),
            lora=Lora(r=4, lora_dropout=0.1),
            train=replace(self.base().train, logging_steps=1),
            output_dir=str(self.folder / name),
        )

    def start(self, target: Callable[[], None], fault: Fault | None = None) -> Any:
        """Start a process; what another has said before it is gone."""
        self.output.write_text("")
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=in_process, args=(target, fault, self.output))
        process.start()
        return process

    @property
    def output(self) -> Path:
        """What the last process said."""
        return self.folder / "output"

    def run(self, recipe: Recipe, fault: Fault | None = None) -> tuple[int, str]:
        """Run a recipe; return how its process ended, and what it said."""
        return self.wait(self.start(Running(recipe.to_json()), fault))

    def wait(self, process: Any) -> tuple[int, str]:
        """Return how a process ended, and what it said."""
        process.join(60)
        process.kill()  # which does nothing, unless it hangs
        process.join()
        return process.exitcode, self.output.read_text(encoding="utf-8")

    def expect(self, recipe: Recipe, fault: Fault | None, code: int, *said: str) -> None:
        """Run a recipe that should end with a code, and say something."""
        found, output = self.run(recipe, fault)
        for text in said:
            require(text in output, f"{text!r} was not said, but: {output[-800:]}")
        require(found == code, f"ended with {found}, not {code}: {output[-800:]}")

    def checkpoints(self, name: str) -> Path:
        """Return the folder of a run's checkpoints."""
        return self.folder / name / "checkpoints"

    def same_bytes(self, name: str) -> None:
        """Check that a run has the weights of the one that nothing interrupted."""
        [found], [wanted] = (
            list((self.folder / each).glob(WEIGHTS)) for each in (name, "uninterrupted")
        )
        require(found.read_bytes() == wanted.read_bytes(), f"{found} is not {wanted}")


def start_server() -> None:
    """Start the process that all others are forked from.

    What the libraries say while they are imported, of kernels that are not installed, goes nowhere.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        forkserver.ensure_running()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def ticket(number: int) -> str:
    """Return a row of data."""
    things = ("hinge", "parcel", "invoice", "refund")
    thing = things[number % 4]
    return json.dumps({"text": f"Ticket {number}: my {thing} is late.", "label": thing})


def trains(bench: Bench) -> None:
    """Train a base and an 8-bit adapter, and find their scores again."""
    bench.expect(bench.base(), None, 0, "perplexity")
    bench.expect(bench.adapter("uninterrupted"), None, 0, "accuracy")
    for name in ("base", "uninterrupted"):
        code, said = bench.wait(bench.start(Scoring(bench.folder / name)))
        require(code == 0, said[-800:])


def stops(bench: Bench) -> None:
    """Go on to the same bytes after SIGTERM."""
    recipe = bench.adapter("stopped")
    bench.expect(recipe, SignalAt(2), 75, "stopped at step 3", "run the same command again")
    bench.expect(recipe, None, 0, "resuming from checkpoint-3")
    bench.same_bytes("stopped")


def dies(bench: Bench) -> None:
    """Go on to the same bytes after kill -9 in a step, and in the middle of a checkpoint."""
    recipe = bench.adapter("killed")
    bench.expect(recipe, SignalAt(3, signal.SIGKILL), -signal.SIGKILL)
    bench.expect(recipe, KillAtWrite("checkpoint-4/optimizer.pt"), -signal.SIGKILL)
    bench.expect(recipe, None, 0, "checkpoint-4 passed over", "resuming from checkpoint-2")
    bench.same_bytes("killed")


def is_damaged(bench: Bench) -> None:
    """Pass over a checkpoint with a flipped bit, and go on to the same bytes."""
    recipe = bench.adapter("damaged")
    bench.expect(recipe, SignalAt(4), 75)
    flip(next((bench.checkpoints("damaged") / "checkpoint-5").glob(WEIGHTS)))
    bench.expect(recipe, None, 0, "checkpoint-5 passed over", "resuming from checkpoint-4")
    bench.same_bytes("damaged")


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def is_no_number(bench: Bench) -> None:
    """Stop before an update that is no number, and name the rows."""
    bench.expect(bench.adapter("nan"), NaNAt(3), 4, "step 4: the gradient norm is nan", "jsonl:")
    names = sorted(c.name for c in bench.checkpoints("nan").iterdir())
    require(names == ["checkpoint-2"], f"there are {names}")


def is_locked(bench: Bench) -> None:
    """Refuse a second run in a folder."""
    recipe = bench.adapter("twice")
    long = replace(recipe, train=replace(recipe.train, max_steps=100_000, logging_steps=1))
    first = bench.start(Running(long.to_json()))
    try:
        while first.is_alive() and not list((bench.folder / "twice").glob("checkpoints/*")):
            time.sleep(0.05)
        bench.expect(recipe, None, 2, f"process {first.pid} is running in")
        require(first.is_alive(), "the first run ended")
    finally:
        first.kill()
        first.join()


def has_bad_rows(bench: Bench) -> None:
    """Name the rows that cannot be used, or leave them out and count them."""
    data = bench.folder / "rows"
    data.mkdir()
    shutil.copy(bench.folder / "test.jsonl", data / "test.jsonl")
    lines = (bench.folder / "train.jsonl").read_text(encoding="utf-8")
    (data / "train.jsonl").write_text(lines + '{"text": "no label"}\n{"text": "half a li')
    recipe = bench.adapter("bad-rows")
    source = replace(bench.source, path=str(data))
    stopping = replace(recipe, task=replace(recipe.task, dataset=source))
    bench.expect(stopping, None, 3, "train.jsonl:49: no value", "train.jsonl:50: not JSON")
    source = replace(source, on_bad_row="skip")
    skipping = replace(recipe, task=replace(recipe.task, dataset=source))
    bench.expect(skipping, None, 0, "2 training rows cannot be used and were left out")


CHECKS = (trains, stops, dies, is_damaged, is_no_number, is_locked, has_bad_rows)


def selftest() -> bool:
    """Do all checks in a temporary folder; say of each whether it held. Return whether all did."""
    out = Console(highlight=False, soft_wrap=True)
    all_held = True
    with tempfile.TemporaryDirectory(prefix="gpt2-recipes-") as folder:
        bench = Bench(Path(folder))
        for check in CHECKS:
            start = time.perf_counter()
            problem = None
            try:
                check(bench)
            except (Failed, OSError, ValueError) as error:
                problem, all_held = error, False
            seconds = time.perf_counter() - start
            word = "ok    " if problem is None else "failed"
            out.print(f"{word} {seconds:5.1f} s  {check.__doc__}", markup=False)
            if problem is not None:
                out.print(f"  {problem}", markup=False)
    return all_held
