"""Assisted decoding: tokens are proposed, and the model checks several in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.models.probes import num_embeddings, num_positions


@dataclass(frozen=True)
class Assistance:
    """What proposes tokens: a smaller model, the text so far, or nothing.

    The model writes the same greedy tokens in each case.
    """

    assistant: Any = None
    prompt_lookup_num_tokens: int | None = None
    """Most tokens to propose, that followed the last two in the text before."""

    def check_room(self, prompts: Sequence[list[int]], max_new_tokens: int, positions: int) -> None:
        """Raise RecipeError for texts that may become longer than what is proposed for can be read.

        `positions` are the model's. Tokens from the text before are proposed beyond the last one.
        """
        flag, beyond = "prompt_lookup_num_tokens", self.prompt_lookup_num_tokens or 0
        if self.assistant is not None:
            flag, positions = "assistant", min(positions, num_positions(self.assistant.config))
        longest = max(map(len, prompts), default=0) + max_new_tokens + beyond
        if self != NO_ASSISTANCE and longest > positions:
            text = f"a text may come to {longest:,} tokens, of {positions:,} positions. "
            text += "Lower --max-new-tokens, or leave this out."
            raise RecipeError([Problem(flag, text)])


NO_ASSISTANCE = Assistance()


def check_assistant(model: Any, tokenizer: Any, assistant: Any, its_tokenizer: Any) -> None:
    """Raise RecipeError for an assistant that does not write the tokens of the model."""
    sizes = num_embeddings(model), num_embeddings(assistant)
    if tokenizer.get_vocab() != its_tokenizer.get_vocab() or sizes[0] != sizes[1]:
        text = (
            f"has another tokenizer: {len(its_tokenizer):,} tokens for {sizes[1]:,} embeddings, "
            f"the result {len(tokenizer):,} for {sizes[0]:,}. Give a result with the same one."
        )
        raise RecipeError([Problem("assistant", text)])
