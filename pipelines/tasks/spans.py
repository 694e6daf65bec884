"""Spans of a context: where windows start, which tokens an answer has, and where it stands."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONTRACTION_OR_SYMBOL = r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})| ?\p{N}| ?[^\s\p{L}\p{N}]"


@dataclass(frozen=True)
class Window:
    """A stretch of one context. `offsets` are (start, end) characters of its tokens."""

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
class Answer:
    """A span of a context, `context[start:end] == text`; "" with no offsets is no answer."""

    text: str
    score: float
    start: int | None = None
    end: int | None = None


def is_answers(value: Any) -> bool:
    """Tell two lists of equal length, of texts and of whole numbers, from anything else."""
    if not isinstance(value, dict) or not {"text", "answer_start"} <= value.keys():
        return False
    texts, starts = value["text"], value["answer_start"]
    return (
        isinstance(texts, list)
        and isinstance(starts, list)
        and len(texts) == len(starts)
        and all(isinstance(text, str) for text in texts)
        and all(type(start) is int for start in starts)
    )


def share_of_first(answers: Sequence[Answer]) -> float:
    """Return the softmax of the first answer's score among those of the n best."""
    return 1 / sum(math.exp(min(answer.score - answers[0].score, 700)) for answer in answers)


def splitting(tokenizer: Any) -> Any:
    """Return a copy that never merges digits or punctuation, so that spans can end between them.

    Byte-level BPE has tokens such as `",` and `700`, in which 1 % of SQuAD's answers end.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Sequence as Steps
    from tokenizers.pre_tokenizers import Split

    copied = copy.deepcopy(tokenizer)
    backend = copied.backend_tokenizer
    split = Split(Regex(CONTRACTION_OR_SYMBOL), behavior="isolated")
    own = backend.pre_tokenizer
    backend.pre_tokenizer = Steps([split, own]) if own else split
    return copied


def window_starts(num_tokens: int, room: int, stride: int) -> list[int]:
    """Return where windows of `room` tokens start, `stride` of them shared."""
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
    touched = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    return (touched[0], touched[-1]) if touched else None


def trim(context: str, start: int, end: int) -> tuple[int, int]:
    """Leave out the white space at both ends of a span."""
    text = context[start:end]
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())
