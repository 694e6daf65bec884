"""Signals that stop a run: what they do before, in and after its training."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.errors import Preempted
from pipelines.training.host_copy import HostCopy
from pipelines.workers import STOP_SIGNALS

AGAIN = "run the same command again to resume."


class Stopped(BaseException):
    """A stop signal ends what is being done; not an Exception, so that no library catches it."""


class StopSignals:
    """Note SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C; the second ends the process, with 130.

    A signal only sets `asked`, which the training looks at after each step. While `immediate` is
    set, where nothing would be lost, it also raises Stopped. A SIGHUP that is ignored, as under
    nohup, stays ignored. Inside of other StopSignals both note a signal, whichever receives it.
    """

    def __init__(self) -> None:
        self.asked = False
        self.immediate = False
        self._before: dict[int, Any] = {}
        self._outer: StopSignals | None = None
        self._terminals = [fd for fd in (1, 2) if is_terminal(fd)]

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in STOP_SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self.receive)
            outer = getattr(self._before[signal.SIGTERM], "__self__", None)
            if isinstance(outer, StopSignals):
                self._outer = outer
                self.asked = self.asked or outer.asked
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self.immediate = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._outer is not None:
            self._outer.asked = self._outer.asked or self.asked
        if isinstance(error, Stopped):
            raise Preempted(f"stopped; {AGAIN}") from None

    def receive(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        if self.asked and number == signal.SIGINT:
            os._exit(130)
        if number == signal.SIGHUP:
            self._leave_terminal()
        first, self.asked = not self.asked, True
        if first and self.immediate:
            raise Stopped

    def check(self) -> None:
        """Raise Stopped if a signal has arrived."""
        if self.asked:
            raise Stopped

    @contextmanager
    def ending(self, message: str) -> Iterator[None]:
        """Let a signal end the block at once, with Preempted and a message."""
        try:
            self.immediate = True
            self.check()
            yield
            self.immediate = False
            self.check()
        except Stopped:
            raise Preempted(message) from None
        finally:
            self.immediate = False

    def _leave_terminal(self) -> None:
        """Write to nowhere instead of to a terminal that was closed: each write would fail."""
        for fd in self._terminals:
            if not is_terminal(fd):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, fd)
                os.close(nowhere)


def is_terminal(fd: int) -> bool:
    """Tell whether a file descriptor is an open terminal."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


class Question:
    """Has a signal reached any rank? Every rank asks, and does something else until the answer."""

    def __init__(self, asked: bool):
        """Ask; `asked` tells whether a signal has reached this rank."""
        self.any = torch.full((), int(asked), device=PartialState().device)
        maximum = torch.distributed.ReduceOp.MAX
        self.work = torch.distributed.all_reduce(self.any, op=maximum, async_op=True)

    def answer(self) -> HostCopy:
        """Return the answer, not 0 for yes; a host with a GPU does not wait for it."""
        self.work.wait()
        return HostCopy(self.any)


class StopAtSignal(TrainerCallback):
    """Finish the step, write a checkpoint and stop, on every rank, when a signal asks for it.

    Several ranks on GPUs make one step more: by then they have heard of each other without a wait.
    Before the first step nothing would be lost: there, a signal ends the process at once.
    """

    def __init__(self, signals: StopSignals):
        self.signals = signals
        self.stopped = False
        self.ended = False
        self.question: Question | None = None
        self.answers: list[HostCopy] = []

    def asked(self) -> bool:
        """Tell whether a signal has reached any rank; every rank must ask."""
        if PartialState().num_processes == 1:
            return self.signals.asked
        return bool(Question(self.signals.asked).answer().read())

    def asked_in_step(self) -> bool:
        """Tell whether a signal has reached any rank; on GPUs, whether it had a step ago."""
        if self.question is None:
            return self.signals.asked
        self.answers.append(self.question.answer())
        num_late = 1 if PartialState().device.type == "cuda" else 0
        return len(self.answers) > num_late and bool(self.answers.pop(0).read())

    def check(self) -> None:
        """Raise Stopped on every rank if a signal has reached any."""
        if self.asked():
            raise Stopped

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.eval_on_start:
            self.signals.immediate = True
            self.signals.check()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.signals.immediate = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the other ranks while the update is made."""
        if PartialState().num_processes > 1:
            self.question = Question(self.signals.asked)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.asked_in_step() and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the last evaluation on several ranks; on one, the signal itself does."""
        if self.ended and PartialState().num_processes > 1:
            self.check()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ended = True
