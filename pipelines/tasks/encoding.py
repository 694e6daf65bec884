"""Encode many texts: several at a time, in little memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from pipelines.tasks.base import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_ITEMS, BATCH_CHARACTERS = 1000, 2**21  # of a batch, whichever is reached first
BATCH_WITH_OFFSETS = 2**19  # characters of a batch whose tokens keep their places in the text
LONGEST_PIECE = 2**17  # characters; longer texts are cut, so that their tokens need no more memory
NUM_TRIES = 50  # places that a cut is tried at
CONTEXT = 64  # characters on each side of a cut by which it is checked
BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=\s[A-Za-z])")

T = TypeVar("T")
Piece = tuple[str, bool]
"""A piece of a text, and whether the text ends with it."""


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the token ids of each text."""
    before: list[int] = []
    for ids, ends in encode_pieces(tokenizer, texts):
        before += ids
        if ends:
            yield before
            before = []


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> Iterator[tuple[list[int], bool]]:
    """Yield the token ids of each piece of the texts, and whether its text ends with it."""
    pieces = chain.from_iterable(cut_text(tokenizer, text) for text in texts)
    for batch in in_batches(pieces, lambda piece: len(piece[0])):
        encoded = token_ids(tokenizer, [piece for piece, _ in batch])
        yield from zip(encoded, [ends for _, ends in batch], strict=True)


def in_batches(
    items: Iterable[T], size_of: Callable[[T], int], most: int = BATCH_CHARACTERS
) -> Iterator[list[T]]:
    """Yield items in batches, which are full when their sizes reach `most`."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if len(batch) >= BATCH_ITEMS or size >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def cut_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[Piece]:
    """Yield a long text in pieces that have the tokens of the whole.

    It is cut between words, where the tokenizer gives both sides alone the tokens that it gives
    them together; nowhere if there is no such place, as with one that begins each text in its own
    way.
    """
    start = 0
    while len(text) - start > LONGEST_PIECE:
        end = find_cut(tokenizer, text, start + LONGEST_PIECE // 2, start + LONGEST_PIECE)
        if end is None:
            break
        yield text[start:end], False
        start = end
    yield text[start:], True


def find_cut(tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int) -> int | None:
    """Return a place to cut between two positions of a text, or None."""
    for match in islice(BETWEEN_WORDS.finditer(text, start, end), NUM_TRIES):
        cut = match.start()
        left, right = text[cut - CONTEXT : cut], text[cut : cut + CONTEXT]
        together, first, second = token_ids(tokenizer, [left + right, left, right])
        if together == first + second:
            return cut
    return None
