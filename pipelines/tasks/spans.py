"""Contexts as tokens with character offsets, windows and answer spans."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.tasks.base import token_ids
from pipelines.tasks.encoding import BATCH_WITH_OFFSETS, in_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    """A part of one context. `offsets`, (tokens, 2), are the start and end of its tokens."""

    question: int
    first: int  # position of its first context token in the row
    offsets: Any


@dataclass(frozen=True)
class Question:
    """A question with its context and gold answers; no answers means unanswerable."""

    context: str
    answers: dict[str, list[Any]]


@dataclass(frozen=True)
class EncodedContext:
    """Token ids of a context, and the (start, end) characters of each token, (tokens, 2)."""

    input_ids: list[int]
    offsets: Any


def encode_questions(
    encode: BatchEncoder, questions: Iterable[tuple[str, Question]]
) -> Iterator[tuple[Question, list[int], EncodedContext]]:
    """Yield each question with the token ids of its text, and with its encoded context.

    Questions are encoded in batches; those of a batch, and those after them, share the tokens of a
    context.
    """
    for batch in in_batches(questions, NewCharacters(), BATCH_WITH_OFFSETS):
        ids, contexts = encode(batch)
        for (_, question), question_ids in zip(batch, ids, strict=True):
            yield question, question_ids, contexts[question.context]


class NewCharacters:
    """Counts the characters of questions, without a context that is that of the one before."""

    def __init__(self) -> None:
        self.context = ""

    def __call__(self, question: tuple[str, Question]) -> int:
        """Return the characters of a question that were not counted before."""
        text, context = question[0], question[1].context
        before, self.context = self.context, context
        return len(text) + (0 if context == before else len(context))


class BatchEncoder:
    """Encodes batches of questions; it keeps the contexts of the latest batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.splitting = tokenizer, splitting_tokenizer(tokenizer)
        self.contexts: dict[str, EncodedContext] = {}

    def __call__(
        self, batch: list[tuple[str, Question]]
    ) -> tuple[list[list[int]], dict[str, EncodedContext]]:
        """Return the token ids of each question of a batch, and the contexts of all."""
        unique = dict.fromkeys(question.context for _, question in batch)
        new = [context for context in unique if context not in self.contexts]
        known = {text: each for text, each in self.contexts.items() if text in unique}
        self.contexts = known | encode_contexts(self.splitting, new)
        return token_ids(self.tokenizer, [text for text, _ in batch]), self.contexts


def encode_contexts(splitting: Any, contexts: list[str]) -> dict[str, EncodedContext]:
    """Encode different contexts with a splitting tokenizer."""
    import numpy as np

    backend = splitting.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encodings = backend.encode_batch(contexts, add_special_tokens=False)
    return {
        text: EncodedContext(each.ids, np.array(each.offsets, np.int32).reshape(-1, 2))
        for text, each in zip(contexts, encodings, strict=True)
    }


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


def gold_span(offsets: Any, answers: dict[str, list[Any]]) -> tuple[int, int] | None:
    """Return the first and last token of the first gold answer; `offsets` is (tokens, 2)."""
    import numpy as np

    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    overlapping = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
    return (int(overlapping[0]), int(overlapping[-1])) if len(overlapping) else None


def is_widened(question: Question, offsets: Any, gold: tuple[int, int]) -> bool:
    """Tell whether a span of tokens holds more characters than the first gold answer."""
    start = question.answers["answer_start"][0]
    end = start + len(question.answers["text"][0])
    span = trim(question.context, int(offsets[gold[0]][0]), int(offsets[gold[1]][1]))
    return span != trim(question.context, start, end)


def trim(context: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the white space at both ends."""
    text = context[start:end]
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())
