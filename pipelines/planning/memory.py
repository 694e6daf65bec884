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
    activations = rehearsal.num_layers * block.activations + block.recomputed
    activations += rehearsal.activations_outside
    training = peaks["training"] + more * kept
    freed = int(more * factor * block.activations + (factor - 1) * activations)
    training += freed
    # More tokens of an evaluation use what the training frees beyond the rehearsal's. Tensors that
    # are larger than a block's, as logits, do not: what the training leaves lies between its blocks
    longer = max(0, eval_tokens - rehearsal.eval_tokens)
    fitting = min(rehearsal.eval_per_token, block.activations / rehearsal.tokens)
    added = max(0, peaks["evaluation"] - peaks["training"])
    added += int(longer * (rehearsal.eval_per_token - fitting))
    added += max(0, int(longer * fitting) - freed - more * block.gradients)
    evaluation = training + added
    saving = evaluation + max(0, peaks["saving"] - peaks["evaluation"])
    return {"loading": loading, "training": training, "evaluation": evaluation, "saving": saving}
