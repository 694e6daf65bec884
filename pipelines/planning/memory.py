"""Predict the peak memory of a run on this machine from a rehearsal with few layers.

Training keeps what it frees for its next step. Evaluations begin and end with a return of it to the
OS (see `pipelines.process`), so that each phase has a peak of its own. What each further layer adds
is known: its weights, gradients, optimizer state and activations. Everything else is in the
rehearsal's own peaks: Python and the libraries, the rows, the embeddings, the head and its logits,
the kernels.
"""

from __future__ import annotations

from pipelines.planning.rehearsal import Rehearsal


def predict_peaks(
    rehearsal: Rehearsal, *, num_layers: int, max_tokens: int, eval_tokens: int
) -> dict[str, int]:
    """Return the peak of each phase of a run in bytes.

    `max_tokens` are those of the largest forward pass of the training, `eval_tokens` of evaluation.
    """
    block, peaks = rehearsal.block, rehearsal.peaks
    more = num_layers - rehearsal.num_layers
    factor = max_tokens / rehearsal.tokens
    activations = rehearsal.num_layers * block.activations + block.recomputed
    activations += rehearsal.activations_outside
    kept = more * (block.weights + block.optimizer)
    training = more * (block.gradients + factor * block.activations) + (factor - 1) * activations
    longer = max(0, eval_tokens - rehearsal.eval_tokens)
    return {
        "loading": peaks["loading"] + more * block.weights,
        "training": peaks["training"] + kept + int(training),
        "evaluation": peaks["evaluation"] + kept + int(longer * rehearsal.eval_per_token),
        "saving": peaks["saving"] + kept,
    }
