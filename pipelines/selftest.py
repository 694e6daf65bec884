"""Inject faults into small runs on this machine: signals, kills, damaged files, bad rows.

The model is tiny and made here; nothing is downloaded. Each run is a process of its own, so that it
can be killed; it is forked from a server that has imported everything, and so starts at once.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from pipelines.data.source import DatasetSource
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Int8, Lora, Model, Scratch, Tokenizer, Train
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.text_classification import TextClassification
from pipelines.terminal import report_errors
from pipelines.workers import STOP_SIGNALS

if TYPE_CHECKING:
    from transformers import TrainerCallback

OFFLINE = {
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
PRELOADED = [
    "pipelines.flow",
    "pipelines.evaluation.evaluate",
    "pipelines.selftest",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt2.tokenization_gpt2",
    "peft",
]
WEIGHTS = "*model.safetensors"


class CheckError(Exception):
    """A check of the self-test that failed."""


def require(condition: bool, message: str) -> None:
    """Raise CheckError with a message unless a condition holds."""
    if not condition:
        raise CheckError(message)


class Fault(Protocol):
    """Something that goes wrong in a run's process."""

    def inject(self) -> Sequence[TrainerCallback]:
        """Prepare the fault in this process; return the callbacks of the run that cause it."""


@dataclass(frozen=True)
class SignalBefore:
    """The process gets a signal before a step."""

    step: int
    number: int = signal.SIGTERM

    def inject(self) -> Sequence[TrainerCallback]:
        """Return a callback that sends the signal."""
        return before_step(self.step, lambda model: os.kill(os.getpid(), self.number))


@dataclass(frozen=True)
class NaNBefore:
    """A trainable weight is NaN before a step."""

    step: int

    def inject(self) -> Sequence[TrainerCallback]:
        """Return a callback that fills the first trainable tensor with NaN."""

        def fill(model: Any) -> None:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

        return before_step(self.step, fill)


@dataclass(frozen=True)
class KillInWrite:
    """The process is killed in the middle of writing a file whose path has this end."""

    end: str

    def inject(self) -> Sequence[TrainerCallback]:
        """Wrap the three ways in which the libraries write."""
        import safetensors.torch
        import torch

        def cut_in_half(write: Callable[..., Any], path_index: int) -> Callable[..., Any]:
            def write_half(*arguments: Any, **options: Any) -> Any:
                result = write(*arguments, **options)
                path = str(arguments[path_index])
                if path.endswith(self.end):
                    os.truncate(path, Path(path).stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return write_half

        def kill_at_open(event: str, arguments: tuple[Any, ...]) -> None:
            if event != "open" or "w" not in str(arguments[1]):
                return
            if str(arguments[0]).endswith(self.end):
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(torch, "save", cut_in_half(torch.save, 1))  # noqa: B010 - on purpose
        module: Any = safetensors.torch
        module.serialize_file = cut_in_half(module.serialize_file, 1)
        sys.addaudithook(kill_at_open)
        return ()


def before_step(step: int, act: Callable[[Any], None]) -> Sequence[TrainerCallback]:
    """Return a callback that does something with the model before a step."""
    from transformers import TrainerCallback

    class BeforeStep(TrainerCallback):
        def on_step_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            if state.global_step == step:
                act(model)

    return (BeforeStep(),)


class Target(Protocol):
    """What a process of the self-test does, with the callbacks of a fault."""

    def __call__(self, callbacks: Sequence[TrainerCallback]) -> None:
        """Do it."""


def in_process(target: Target, fault: Fault | None, output: Path) -> None:
    """Do something in this process with a fault; its output goes to a file."""
    with output.open("w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    # A fork server that workers of loaders have started blocks the signals, and so do its children.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    callbacks = () if fault is None else fault.inject()
    with report_errors():
        target(callbacks)


@dataclass(frozen=True)
class RunRecipe:
    """Run a recipe; a value that can be sent to another process."""

    recipe: str

    def __call__(self, callbacks: Sequence[TrainerCallback]) -> None:
        """Run it."""
        from pipelines.flow import run

        run(Recipe.from_json(self.recipe), callbacks)


@dataclass(frozen=True)
class ScoreAgain:
    """Score a result again, and exit with 1 if the score differs."""

    folder: Path

    def __call__(self, callbacks: Sequence[TrainerCallback]) -> None:
        """Score it."""
        from pipelines.evaluation.evaluate import evaluate

        if not evaluate(self.folder).equal:
            raise SystemExit(1)


@dataclass(frozen=True)
class Sandbox:
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

    def start(self, target: Target, fault: Fault | None = None) -> Any:
        """Start a process; the output of the one before it is discarded."""
        self.output.write_text("")
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=in_process, args=(target, fault, self.output))
        process.start()
        return process

    @property
    def output(self) -> Path:
        """File with the output of the last process."""
        return self.folder / "output"

    def run(self, recipe: Recipe, fault: Fault | None = None) -> tuple[int, str]:
        """Run a recipe; return the exit code of its process, and its output."""
        return self.wait(self.start(RunRecipe(recipe.to_json()), fault))

    def wait(self, process: Any) -> tuple[int, str]:
        """Return the exit code of a process, and its output."""
        process.join(60)
        process.kill()  # only a process that hangs is still there
        process.join()
        return process.exitcode, self.output.read_text(encoding="utf-8")

    def expect(self, recipe: Recipe, fault: Fault | None, code: int, *texts: str) -> None:
        """Run a recipe; require an exit code, and texts in its output."""
        exit_code, output = self.run(recipe, fault)
        for text in texts:
            require(text in output, f"{text!r} is not in the output: {output[-800:]}")
        require(exit_code == code, f"exit code {exit_code}, not {code}: {output[-800:]}")

    def checkpoints(self, name: str) -> Path:
        """Return the folder of a run's checkpoints."""
        return self.folder / name / "checkpoints"

    def require_same_weights(self, name: str) -> None:
        """Require that a run has the same weights, to the byte, as the uninterrupted one."""
        [weights], [expected] = (
            list((self.folder / each).glob(WEIGHTS)) for each in (name, "uninterrupted")
        )
        same = weights.read_bytes() == expected.read_bytes()
        require(same, f"{weights} differs from {expected}")


def start_server() -> None:
    """Start the process that all others are forked from.

    Discards what the libraries print while they are imported, about kernels not installed.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
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


def trains_and_scores(sandbox: Sandbox) -> None:
    """Train a base and an 8-bit adapter, and reproduce their scores."""
    sandbox.expect(sandbox.base(), None, 0, "perplexity")
    sandbox.expect(sandbox.adapter("uninterrupted"), None, 0, "accuracy")
    for name in ("base", "uninterrupted"):
        code, output = sandbox.wait(sandbox.start(ScoreAgain(sandbox.folder / name)))
        require(code == 0, output[-800:])


def resumes_after_signal(sandbox: Sandbox) -> None:
    """Resume to the same bytes after SIGTERM."""
    recipe = sandbox.adapter("stopped")
    texts = ("stopped at step 3", "run the same command again")
    sandbox.expect(recipe, SignalBefore(2), 75, *texts)
    sandbox.expect(recipe, None, 0, "resuming from checkpoint-3")
    sandbox.require_same_weights("stopped")


def resumes_after_kill(sandbox: Sandbox) -> None:
    """Resume to the same bytes after kill -9 in a step, and in the middle of a checkpoint."""
    recipe = sandbox.adapter("killed")
    sandbox.expect(recipe, SignalBefore(3, signal.SIGKILL), -signal.SIGKILL)
    sandbox.expect(recipe, KillInWrite("checkpoint-4/optimizer.pt"), -signal.SIGKILL)
    texts = ("checkpoint-4 passed over", "resuming from checkpoint-2")
    sandbox.expect(recipe, None, 0, *texts)
    sandbox.require_same_weights("killed")


def passes_over_damage(sandbox: Sandbox) -> None:
    """Pass over a checkpoint with a flipped bit, and resume to the same bytes."""
    recipe = sandbox.adapter("damaged")
    sandbox.expect(recipe, SignalBefore(4), 75)
    flip_bit(next((sandbox.checkpoints("damaged") / "checkpoint-5").glob(WEIGHTS)))
    texts = ("checkpoint-5 passed over", "resuming from checkpoint-4")
    sandbox.expect(recipe, None, 0, *texts)
    sandbox.require_same_weights("damaged")


def flip_bit(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def stops_at_nan(sandbox: Sandbox) -> None:
    """Stop before an update that is not finite, and name the rows."""
    recipe = sandbox.adapter("nan")
    sandbox.expect(recipe, NaNBefore(3), 4, "step 4: the gradient norm is nan", "jsonl:")
    names = sorted(file.name for file in sandbox.checkpoints("nan").iterdir())
    require(names == ["checkpoint-2"], f"the checkpoints are {names}")


def refuses_second_run(sandbox: Sandbox) -> None:
    """Refuse a second run in a folder."""
    recipe = sandbox.adapter("twice")
    long = replace(recipe, train=replace(recipe.train, max_steps=100_000, logging_steps=1))
    first = sandbox.start(RunRecipe(long.to_json()))
    try:
        while first.is_alive() and not list((sandbox.folder / "twice").glob("checkpoints/*")):
            time.sleep(0.05)
        sandbox.expect(recipe, None, 2, f"process {first.pid} is running in")
        require(first.is_alive(), "the first run ended")
    finally:
        first.kill()
        first.join()


def names_bad_rows(sandbox: Sandbox) -> None:
    """Name the rows that cannot be used, or skip and count them."""
    data = sandbox.folder / "rows"
    data.mkdir()
    shutil.copy(sandbox.folder / "test.jsonl", data / "test.jsonl")
    lines = (sandbox.folder / "train.jsonl").read_text(encoding="utf-8")
    (data / "train.jsonl").write_text(lines + '{"text": "no label"}\n{"text": "half a li')
    recipe = sandbox.adapter("bad-rows")
    source = replace(sandbox.source, path=str(data))
    stopping = replace(recipe, task=replace(recipe.task, dataset=source))
    texts = ("train.jsonl:49: no value", "train.jsonl:50: not JSON")
    sandbox.expect(stopping, None, 3, *texts)
    source = replace(source, on_bad_row="skip")
    skipping = replace(recipe, task=replace(recipe.task, dataset=source))
    sandbox.expect(skipping, None, 0, "2 training rows cannot be used and were left out")


CHECKS = (
    trains_and_scores,
    resumes_after_signal,
    resumes_after_kill,
    passes_over_damage,
    stops_at_nan,
    refuses_second_run,
    names_bad_rows,
)


def selftest() -> bool:
    """Run all checks in a temporary folder, and print each result. Return whether all passed."""
    out = Console(highlight=False, soft_wrap=True)
    all_passed = True
    with tempfile.TemporaryDirectory(prefix="gpt2-recipes-") as folder:
        sandbox = Sandbox(Path(folder))
        for check in CHECKS:
            start = time.perf_counter()
            problem = None
            try:
                check(sandbox)
            except (CheckError, OSError, ValueError) as error:
                problem, all_passed = error, False
            seconds = time.perf_counter() - start
            word = "ok    " if problem is None else "failed"
            out.print(f"{word} {seconds:5.1f} s  {check.__doc__}", markup=False)
            if problem is not None:
                out.print(f"  {problem}", markup=False)
    return all_passed
