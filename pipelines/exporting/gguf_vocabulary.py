"""The vocabulary of a tokenizer as llama.cpp reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipelines.errors import Problem, RecipeError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""gguf.TokenType, which only the extra has."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id with their types, and the merges of a byte-level BPE, each as "left right"."""

    tokens: list[str]
    types: list[int]
    merges: list[str]


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> Vocabulary:
    """Return the vocabulary of GPT-2's byte-level BPE, filled up to the number of embeddings.

    Raise RecipeError for a tokenizer that splits texts in another way: llama.cpp would read the
    same text as other tokens.
    """
    if not tokenizer.is_fast:
        raise refused(f"{type(tokenizer).__name__} is not a tokenizer of the library tokenizers")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if difference := difference_from_gpt2(parts):
        raise refused(difference)
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    types = dict.fromkeys(tokens, NORMAL)
    for number, added in tokenizer.added_tokens_decoder.items():
        types[number] = CONTROL if added.special else USER_DEFINED
    names = set(tokens.values())
    for number in range(num_embeddings):
        if number not in tokens:
            tokens[number] = f"[UNUSED{number}]"
            types[number] = UNUSED
            assert tokens[number] not in names
    order = range(num_embeddings)
    merges = [
        each if isinstance(each, str) else " ".join(each) for each in parts["model"]["merges"]
    ]
    return Vocabulary([tokens[n] for n in order], [types[n] for n in order], merges)


def difference_from_gpt2(parts: dict[str, Any]) -> str | None:
    """Return how a tokenizer differs from GPT-2's, or None. `parts` is its tokenizer.json."""
    model, split = parts["model"], parts["pre_tokenizer"] or {}
    if parts["normalizer"] is not None:
        return "its normalizer changes the text"
    if model["type"] != "BPE":
        return f"its model is {model['type']}"
    if model.get("dropout") or model.get("ignore_merges") or model.get("byte_fallback"):
        return "its merges are not GPT-2's"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its tokens have a prefix or a suffix"
    if split.get("type") != "ByteLevel":
        return f"it splits texts by {split.get('type', 'characters')}"
    if split["add_prefix_space"] or not split.get("use_regex", True):
        return "it splits texts by other rules"
    return None


def refused(reason: str) -> RecipeError:
    """Return the error of a tokenizer that GGUF cannot hold."""
    text = f"gguf holds GPT-2's byte-level BPE, and of this result's tokenizer {reason}."
    return RecipeError([Problem("to", f"{text} Use --to onnx.")])
