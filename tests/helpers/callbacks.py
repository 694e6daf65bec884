"""Callbacks that make a run's step go wrong, or measure it; `run(recipe, callbacks)` takes them."""

import os
import resource
import signal
from pathlib import Path

import torch
from transformers import TrainerCallback

from pipelines.errors import EndedEarly


class AtStep(TrainerCallback):
    """Do something when so many steps are made, before the next; on one rank, or on all."""

    def __init__(self, step: int, rank: int | None = None):
        self.step = step
        self.rank = rank

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        on_rank = self.rank in (None, int(os.environ.get("RANK", "0")))
        if state.global_step == self.step and on_rank:
            self.act(model)

    def act(self, model) -> None:
        """Do it."""
        raise NotImplementedError


class KeepGradients(TrainerCallback):
    """Keep the gradients of the first step, by the name of the parameter, on the CPU."""

    def __init__(self):
        self.kept: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.kept = {
                name: parameter.grad.to("cpu", torch.float32, copy=True)
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }


class CountSaved(TrainerCallback):
    """Write the bytes that each process saves for the backward passes of its last step."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.num_bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.count, lambda saved: saved)
        self.hooks.__enter__()

    def count(self, saved):
        self.num_bytes += saved.nbytes
        return saved

    def on_step_end(self, args, state, control, **kwargs):
        self.hooks.__exit__(None, None, None)
        file = Path(args.output_dir).parent / f"saved-{args.process_index}"
        file.write_text(str(self.num_bytes))


class SignalAt(AtStep):
    """The process gets a real signal, or several."""

    def __init__(self, step: int, name: str = "SIGTERM", *, times: int = 1, rank=None):
        super().__init__(step, rank)
        self.number = getattr(signal, name)
        self.times = times

    def act(self, model):
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


class RaiseAt(AtStep):
    """The process raises KeyError with a text."""

    def __init__(self, step: int, text: str):
        super().__init__(step)
        self.text = text

    def act(self, model):
        raise KeyError(self.text)


class EndAfter(TrainerCallback):
    """The run ends after a step, as a search prunes a trial."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise EndedEarly


class Refused(TrainerCallback):
    """The run is to be refused: its message is printed, and the next one follows."""


class NaNGradientAt(AtStep):
    """Gradients become NaN, and no loss."""

    def act(self, model):
        def spoil(module, inputs, output):
            output.register_hook(lambda gradient: gradient * float("nan"))

        model.transformer.ln_f.register_forward_hook(spoil)


class NaNAt(AtStep):
    """One weight becomes NaN."""

    def act(self, model):
        with torch.no_grad():
            model.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")


class FullDiskAt(AtStep):
    """Files can no longer exceed 20 kB."""

    def act(self, model):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
