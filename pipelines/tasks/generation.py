"""Options of generation, a generated text, and the turns of a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypedDict

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True)
class Continuation:
    """Text that a model generated after a prompt.

    `ended` tells whether EOS, which is not in `text`, followed it.
    """

    text: str
    ended: bool


@dataclass(frozen=True)
class Turn:
    """A message of a conversation, and what the model wrote after it."""

    message: str
    reply: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How texts are generated, by the names of transformers' GenerationConfig."""

    max_new_tokens: Annotated[int, Ge(1)] = 128
    """Most tokens to generate; a text with EOS ends before."""
    num_beams: Annotated[int, Ge(1)] = 1
    """Beams of beam search; 1 is greedy search."""
    do_sample: bool = False
    """Sample tokens by their probability."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the logits before sampling; above 1 is more random, below 1 less."""
    top_k: Annotated[int, Ge(0)] = 50
    """Sample from this many of the most likely tokens; 0 samples from all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the most likely tokens whose probabilities add up to this."""
    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    """Above 1 makes tokens of the text so far less likely."""
    no_repeat_ngram_size: Annotated[int, Ge(0)] = 0
    """Never repeat an n-gram of this size; 0 allows all repetitions."""
    length_penalty: float = 1.0
    """For beam search: above 0 favours longer texts, below 0 shorter ones."""


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


def trim_start(text: str) -> str:
    """Return a reply without the white space before it, but for an indentation as of code.

    That is a tab or several spaces before the first line, after at most one line break. One space
    separates a reply from its prompt.
    """
    body = text.lstrip()
    _, newline, indentation = text[: len(text) - len(body)].rpartition("\n")
    if not body or (len(indentation) < 2 and "\t" not in indentation):
        return body
    return newline + indentation + body


def trim_reply(text: str) -> str:
    """Return a reply without the white space around it, see `trim_start`."""
    return trim_start(text).rstrip()
