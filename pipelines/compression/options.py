"""What `gpt2-recipes compress` is asked to do. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipelines.errors import Problem, RecipeError


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What is done to a model, in this order."""

    prune_heads: float | None = None
    """Fraction of the attention heads of each layer, with as much of the width."""
    prune_neurons: float | None = None
    """Fraction of the neurons of each layer."""
    sparsity: float | None = None
    """Fraction of the weights inside the blocks that are set to zero."""
    recover_steps: int | None = None
    """Steps of training afterwards, on the rows of the run."""
    recover_learning_rate: float | None = None
    """Peak learning rate of it; the recipe's own if not given."""
    distill: bool = False
    """Train towards the model before compression, next to the labels."""
    bits: Literal[8, 4] | None = None
    """Bits of a stored weight inside the blocks, by bitsandbytes."""

    def __post_init__(self) -> None:
        if problems := list(self.problems()):
            raise RecipeError(problems)

    @property
    def shrinks(self) -> bool:
        """Tell whether the model gets another shape."""
        return self.prune_heads is not None or self.prune_neurons is not None

    @property
    def prunes(self) -> bool:
        """Tell whether weights are removed or set to zero."""
        return self.shrinks or self.sparsity is not None

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be done."""
        for name in ("prune_heads", "prune_neurons", "sparsity"):
            fraction = getattr(self, name)
            if fraction is not None and not 0 < fraction < 1:
                yield Problem(
                    name, f"{fraction:g} is out of range; it must be above 0 and below 1."
                )
        if not self.prunes and self.bits is None:
            text = "nothing to do. Give --prune-heads, --prune-neurons, --sparsity or --bits."
            yield Problem("compress", text)
        if self.recover_steps is not None and self.recover_steps < 1:
            yield Problem("recover_steps", f"{self.recover_steps} is below 1.")
        if self.recover_steps is not None and not self.prunes:
            yield Problem("recover_steps", "is the training after pruning, and nothing is pruned.")
        if self.recover_steps is None:
            for name in ("distill", "recover_learning_rate"):
                if getattr(self, name):
                    yield Problem(name, "is of the training afterwards. Give --recover-steps.")
