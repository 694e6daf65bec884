"""Contexts as tokens with character offsets, windows and answer spans."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Hangul}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}"
    r"\p{Tibetan}\p{Javanese}\p{Balinese}"
    r"\x{3006}\x{3031}-\x{3035}\x{303c}\x{30fc}\x{ff70}\x{ff9e}\x{ff9f}"
)
"""Scripts written without spaces between words, and Japanese length and repetition marks, which
belong to no script in Unicode. Hangul is among them: Korean joins particles to words."""
CONTRACTION_OR_SYMBOL = (
    rf"'(?:s|t|re|ve|m|ll|d)(?!\p{{L}})| ?[\p{{N}}{UNSPACED}]| ?[^\s\p{{L}}\p{{N}}]"
)


@dataclass(frozen=True)
class Window:
    """A part of one context. `offsets` are the (start, end) characters of its tokens."""

    question: int
    first: int  # position of its first context token in the row
    offsets: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Question:
    """A question with its context and gold answers; no answers means unanswerable."""

    id: str
    context: str
    answers: dict[str, list[Any]]


@dataclass(frozen=True)
class EncodedContext:
    """Token ids of a context, and the (start, end) characters of each token."""

    input_ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]


def encode_contexts(tokenizer: Any, contexts: Iterable[str]) -> dict[str, EncodedContext]:
    """Encode each different context once."""
    unique = list(dict.fromkeys(contexts))
    encoded = splitting_tokenizer(tokenizer)(
        unique, add_special_tokens=False, verbose=False, return_offsets_mapping=True
    )
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return {text: EncodedContext(*each) for text, each in zip(unique, pairs, strict=True)}


def splitting_tokenizer(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer that splits digits and punctuation.

    It never merges them, nor characters of UNSPACED scripts. Spans can then end between them. 1 %
    of SQuAD's answers end inside tokens of byte-level BPE such as `",` and `700`; Chinese words can
    be single tokens.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Sequence as Steps
    from tokenizers.pre_tokenizers import Split

    copied = copy.deepcopy(tokenizer)
    backend = copied.backend_tokenizer
    split = Split(Regex(CONTRACTION_OR_SYMBOL), behavior="isolated")
    original = backend.pre_tokenizer
    backend.pre_tokenizer = Steps([split, original]) if original else split
    return copied


def window_starts(num_tokens: int, room: int, stride: int) -> list[int]:
    """Return the starts of windows of `room` tokens that overlap by `stride`."""
    starts = [0]
    while starts[-1] + room < num_tokens:
        starts.append(starts[-1] + room - stride)
    return starts


def gold_span(
    offsets: Sequence[tuple[int, int]], answers: dict[str, list[Any]]
) -> tuple[int, int] | None:
    """Return the first and last token of the first gold answer."""
    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    overlapping = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    return (overlapping[0], overlapping[-1]) if overlapping else None


def is_widened(
    question: Question, offsets: Sequence[tuple[int, int]], gold: tuple[int, int]
) -> bool:
    """Tell whether a span of tokens holds more characters than the first gold answer."""
    start = question.answers["answer_start"][0]
    end = start + len(question.answers["text"][0])
    span = trim(question.context, offsets[gold[0]][0], offsets[gold[1]][1])
    return span != trim(question.context, start, end)


def trim(context: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the white space at both ends."""
    text = context[start:end]
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())
