"""Predict the peak memory of a run on this machine from a rehearsal with few layers.

The process keeps what it frees (see `pipelines.process`), so that memory only grows from one phase
to the next. What each further layer adds is known: its weights, gradients, optimizer state and
activations. Everything else is in the rehearsal's own peaks: Python and the libraries, the rows,
the embeddings, the head and its logits, the kernels.
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
    loading = peaks["loading"] + more * block.weights
    kept = block.weights + block.gradients + block.optimizer
    activations = rehearsal.num_layers * block.activations + rehearsal.activations_outside
    training = peaks["training"] + more * kept
    training += int(more * factor * block.activations + (factor - 1) * activations)
    # What comes after the training uses the room of its activations and gradients again
    resting = rehearsal.resting + more * (block.weights + block.optimizer)
    longer = int(rehearsal.eval_per_token * (eval_tokens - rehearsal.eval_tokens))
    evaluation = max(training, resting + peaks["evaluation"] - rehearsal.resting + longer)
    saving = max(evaluation, resting + peaks["saving"] - rehearsal.resting)
    return {"loading": loading, "training": training, "evaluation": evaluation, "saving": saving}
