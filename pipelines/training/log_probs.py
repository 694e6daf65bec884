"""Check the log-probabilities of trl's fused head against the model's own logits."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import torch
from trl.trainer.utils import FusedCausalLMOutput

from pipelines.models.probes import NUM_TRIED, evaluating, logits_of, num_embeddings
from pipelines.models.upstream import replace_forward
from pipelines.tasks.replies import IGNORED


def use_right_log_probs(model: Any) -> None:
    """Replace trl's fused head where it computes other log-probabilities than the model's logits.

    trl knows by name the settings by which models scale or cap their logits, not what they do.
    """
    if type(model.get_output_embeddings()) is not torch.nn.Linear:
        use_own_logits(model)
        return
    ids = torch.arange(NUM_TRIED, device=model.device)[None] % num_embeddings(model)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # States are made large, so that a cap has an effect even if the weights are small
    largest = float(logits_of(model, ids).abs().max())
    hook = model.base_model.register_forward_hook(partial(enlarge, factor=100 / max(largest, 1e-6)))
    try:
        with evaluating(model):
            logits = model(**inputs).logits.float()
            fused = model(**inputs, labels=ids, fused_lm_head=True).log_probs.float()
    finally:
        hook.remove()
    expected = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
    if not (fused - expected).abs().max() <= tolerance * expected.abs().max():
        use_own_logits(model)


def enlarge(body: Any, arguments: Any, output: Any, *, factor: float) -> Any:
    """Multiply the last hidden states."""
    output.last_hidden_state = output.last_hidden_state * factor
    return output


def use_own_logits(model: Any) -> None:
    """Compute the outputs of trl's fused head from the model's own logits."""
    own = type(model).forward

    @functools.wraps(own)
    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            return own(self, *args, **kwargs, **({} if labels is None else {"labels": labels}))
        outputs = own(self, *args, **kwargs)
        labels = labels[:, 1:]
        mask = labels != IGNORED
        logits = outputs.logits[:, :-1][mask].float()  # (learned tokens, vocabulary)
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(-1, labels[mask][:, None]).squeeze(-1)

        def by_token(values: torch.Tensor) -> torch.Tensor:
            zeros = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
            return zeros.masked_scatter(mask, values)

        return FusedCausalLMOutput(
            log_probs=by_token(chosen),
            entropy=by_token(-(log_probs.exp() * log_probs).sum(-1).detach()),
            mean_logits=by_token(logits.mean(-1).detach()),
            is_top1=by_token(logits.argmax(-1) == labels[mask]),
            label_mask=mask,
            aux_loss=getattr(outputs, "aux_loss", None),
        )

    replace_forward(model, forward)
