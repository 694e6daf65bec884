"""Options of generation, and what is generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypedDict

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt; `ended` if it wrote EOS, which is not in the text."""

    text: str
    ended: bool


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How to continue a text, in transformers' names."""

    max_new_tokens: Annotated[int, Ge(1)] = 128
    """Most tokens to write; a text that ends by itself is shorter."""
    num_beams: Annotated[int, Ge(1)] = 1
    """Beams of a beam search; 1 takes the likeliest token each time."""
    do_sample: bool = False
    """Draw tokens at random, by their probability."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the logits before drawing; below 1 is bolder, above 1 wilder."""
    top_k: Annotated[int, Ge(0)] = 50
    """Draw from so many of the likeliest tokens; 0 draws from all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Draw from the likeliest tokens that hold this share of the probability."""
    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    """Above 1 makes tokens that stand there already less likely."""
    no_repeat_ngram_size: Annotated[int, Ge(0)] = 0
    """Never write the same n-gram of this size twice; 0 may."""
    length_penalty: float = 1.0
    """Of a beam search: above 0 favours longer texts, below 0 shorter ones."""


class GenerationOptions(TypedDict, total=False):
    """Fields of Generation that replace a recipe's, as keyword arguments of a function."""

    max_new_tokens: int
    num_beams: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    length_penalty: float
