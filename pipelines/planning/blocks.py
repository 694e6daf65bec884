"""The repeated blocks of a model: what one of them holds, keeps for its gradient, and takes.

A model's memory and time grow by one block for each layer, so that two layers tell of any number.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pipelines.planning.peak import memory_at_rest, resident_memory


def blocks_of(model: Any) -> torch.nn.ModuleList:
    """Return the blocks of a model, which its config counts as hidden layers."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    return next(each for each in lists if len(each) == count)


def weight_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of weights, with the scales of those in 8 and 4 bits."""
    total = 0
    for tensor in tensors:
        total += tensor.nbytes
        scale = getattr(tensor, "SCB", None)
        total += 0 if scale is None else scale.nbytes
        state = getattr(tensor, "quant_state", None)
        while state is not None:  # double quantisation has a state of the state
            total += state.absmax.nbytes
            state = getattr(state, "state2", None)
    return total


def module_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return weight_bytes([*module.parameters(), *module.buffers()])


def trained_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the trainable parameters of a module."""
    return [each for each in module.parameters() if each.requires_grad]


@dataclass
class Watch:
    """What a model's last forward pass saved for its backward pass, and its last block's time.

    Weights that autocast has converted are counted apart: they do not grow with the batch.
    """

    model: Any
    saved: dict[int, int] = field(default_factory=dict)
    """Bytes by block; -1 is what is outside of the blocks."""
    casts: dict[int, int] = field(default_factory=dict)
    """Bytes of converted weights, by block."""
    growth: int | None = None
    """Bytes by which the process grew in the last block of the first pass."""
    input_bytes: int = 0
    """Of the last block's input."""
    checkpointed: bool = False
    """Whether training keeps the inputs of blocks alone. The last block keeps all, as if it were
    the one that is computed again."""
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0

    def __post_init__(self) -> None:
        weights = [*self.model.parameters(), *self.model.buffers()]
        self.known = {each.untyped_storage().data_ptr() for each in weights}
        self.types: dict[tuple[int, ...], torch.dtype] = {
            tuple(sorted(each.shape)): each.dtype
            for each in weights
            if each.dim() == 2 and each.is_floating_point()
        }
        """Of the weights that autocast converts, by their shape in either orientation."""
        self.seen: set[int] = set()
        self.current, self.last = -1, len(blocks_of(self.model)) - 1
        self.resident, self.started = 0, 0.0
        self.reached: dict[int, float] = {}
        """When the backward pass came to a block."""

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Look at every forward and backward pass inside."""
        blocks = blocks_of(self.model)
        hooks = [self.model.register_forward_pre_hook(self.begin)]
        for number, block in enumerate(blocks):
            hooks.append(block.register_forward_pre_hook(self.enter(number)))
            hooks.append(block.register_forward_hook(self.leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
                yield self
        finally:
            for hook in hooks:
                hook.remove()
        if {self.last, self.last - 1} <= self.reached.keys():
            self.backward_seconds = self.reached[self.last - 1] - self.reached[self.last]

    def begin(self, *_: Any) -> None:
        """Forget the pass before."""
        if torch.is_grad_enabled():
            if self.growth is None:
                memory_at_rest()  # no block uses what was freed before
            self.saved, self.casts, self.reached = {}, {}, {}
            self.seen, self.current = set(), -1
            last: Any = blocks_of(self.model)[self.last]
            if self.last > 0 and getattr(last, "gradient_checkpointing", False):
                self.checkpointed, last.gradient_checkpointing = True, False

    def enter(self, number: int) -> Any:
        """Return a hook that begins a block."""

        def hook(block: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            self.input_bytes = inputs[0].nbytes
            self.current, self.resident, self.started = number, resident_memory(), now()

        return hook

    def leave(self, block: Any, inputs: Any, output: Any) -> None:
        """End a block."""
        if torch.is_grad_enabled():
            self.forward_seconds = now() - self.started
            if self.current == self.last and self.growth is None:
                self.growth = resident_memory() - self.resident
            states = output[0] if isinstance(output, tuple) else output
            if states.requires_grad:
                states.register_hook(partial(self.reach, self.current))
        self.current = -1

    def reach(self, number: int, gradient: torch.Tensor) -> None:
        """Note that the backward pass comes to a block."""
        self.reached[number] = now()

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor that is saved."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known | self.seen:
            self.seen.add(storage.data_ptr())
            kind = self.casts if self.is_cast(tensor) else self.saved
            kind[self.current] = kind.get(self.current, 0) + storage.nbytes()
        return tensor

    def is_cast(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor has the shape of a weight, in another type."""
        of_weight: torch.dtype | None = self.types.get(tuple(sorted(tensor.shape)))
        return of_weight not in (None, tensor.dtype)

    @property
    def block_seconds(self) -> float:
        """Return the seconds of a block's forward and backward pass."""
        num_forward = 2 if self.checkpointed else 1
        return num_forward * self.forward_seconds + self.backward_seconds


def now() -> float:
    """Return the time, when everything that a GPU was given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
