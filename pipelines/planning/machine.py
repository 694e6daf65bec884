"""Predict the time of a run on this machine from a rehearsal with few layers."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.planning.batches import Batches
from pipelines.planning.rehearsal import Rehearsal


@dataclass(frozen=True)
class Seconds:
    """The predicted time of a run in seconds, by phase."""

    step: float
    """Of an optimizer step of average length."""
    training: float
    evaluation: float
    """Of all evaluations together."""

    @property
    def total(self) -> float:
        """Return the time of the run."""
        return self.training + self.evaluation


def predict_seconds(
    rehearsal: Rehearsal,
    batches: Batches,
    *,
    num_layers: int,
    num_trained: int,
    scored_tokens: int,
    num_evaluations: int,
) -> Seconds:
    """Return the time of a run whose evaluation reads `scored_tokens`.

    A forward and backward pass grows with its tokens and, but for the embeddings and the head, with
    the layers; the optimizer's update with the parameters that it updates.
    """
    passes = (rehearsal.step_seconds - rehearsal.update_seconds) / rehearsal.accumulation
    in_blocks = rehearsal.num_layers * rehearsal.block_seconds
    outside = max(0.0, passes - in_blocks)
    deep = outside + num_layers * rehearsal.block_seconds
    tokens = batches.mean_tokens / rehearsal.tokens
    update = rehearsal.update_seconds * num_trained / rehearsal.trained
    step = batches.accumulation * tokens * deep + update
    deeper = deep / (outside + in_blocks)
    evaluation = rehearsal.eval_seconds * deeper * scored_tokens / rehearsal.scored_tokens
    return Seconds(step, batches.steps * step, num_evaluations * evaluation)
