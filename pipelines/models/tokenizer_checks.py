"""Refuse tokenizers that lose text or do not match the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipelines.data.rows import Examples
from pipelines.errors import DataError, Problem, RecipeError
from pipelines.models.download import ensure_downloaded
from pipelines.models.probes import num_embeddings
from pipelines.recipe.values import Model
from pipelines.tasks.base import Features, Task, token_ids

SAMPLED_TEXTS = 200
SAMPLED_CHARACTERS = 1000
"""Of each sampled text."""
MOST_LOST = 0.8
"""Fraction of lost characters above which a tokenizer is refused."""
WORTH_A_CAUTION = 0.01


def read_tokenizer(name: str, revision: str | None, *, path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or a Hub repository.

    Raise RecipeError, which names `path`, where its files are missing or damaged.
    """
    way_out = ""
    if path == "model.name_or_path":
        way_out = " Name the tokenizer that it was trained with by --model.tokenizer."
    ensure_downloaded(Model(name_or_path=name, revision=revision), path=path, weights=False)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
    except Exception as error:  # each backend raises its own, tokenizers a bare Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        message = f"the tokenizer of {name!r} cannot be loaded: {reason}"
        raise RecipeError([Problem(path, f"{message}.{way_out}")]) from error
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        message = f"{name!r} has no tokenizer: its files are missing or empty, and every text "
        raise RecipeError([Problem(path, f"{message}would be read as nothing.{way_out}")])
    if tokenizer.eos_token_id is None:
        message = f"the tokenizer of {name!r} has no EOS token, which ends every text. Set "
        message += '"eos_token" in its tokenizer_config.json.'
        raise RecipeError([Problem(path, f"{message}{way_out}")])
    return tokenizer


def max_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest id of a vocabulary, which may have gaps."""
    return max(tokenizer.get_vocab().values())


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Examples
) -> Iterator[str]:
    """Yield a caution where a tokenizer loses characters of the training texts.

    Raise RecipeError where it loses most of them, or cannot do what the task needs.
    """
    if task.needs_offsets and not tokenizer.is_fast:
        message = (
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not tell the characters "
            f"of a token, as {type(task).__name__} needs. Name a model with a fast one."
        )
        raise RecipeError([Problem("model.tokenizer", message)])
    texts = [text[:SAMPLED_CHARACTERS] for text in islice(texts_of(examples), SAMPLED_TEXTS)]
    fraction = lost_fraction(tokenizer, texts)
    lost = f"{fraction:.0%} of the characters of the training texts"
    if fraction > MOST_LOST:
        message = f"the tokenizer loses {lost}, which are not in its vocabulary. Use a "
        message += "model whose tokenizer has them."
        raise RecipeError([Problem("model.tokenizer", message)])
    if fraction >= WORTH_A_CAUTION:
        yield f"the tokenizer loses {lost}: they are not in its vocabulary"


def texts_of(examples: Examples) -> Iterator[str]:
    """Yield the texts of rows that are not blank, those inside lists and messages too."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, str) and value.strip():
            yield value
        elif isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                yield from inside(each)

    for row in examples.rows:
        yield from inside(row)


def lost_fraction(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """Return the fraction of characters, without spaces, that encoding and decoding loses.

    They become unknown tokens, or no token at all.
    """

    def num_characters(text: str) -> int:
        return sum(not character.isspace() for character in text)

    if tokenizer.unk_token is not None:  # a separator of documents, say
        texts = [text.replace(str(tokenizer.unk_token), "") for text in texts]
    given = kept = 0
    for text, ids in zip(texts, token_ids(tokenizer, texts) if texts else [], strict=True):
        known = [number for number in ids if number != tokenizer.unk_token_id]
        decoded = str(tokenizer.decode(known))
        given += num_characters(text)
        kept += min(num_characters(decoded), num_characters(text))
    return 1 - kept / given if given else 0.0


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, count: int, *, path: str) -> None:
    """Raise RecipeError for an EOS or pad token that a model has no embedding for."""
    problems = [
        Problem(
            path,
            f"the {kind} token {token!r} is token {number}, beyond the model's {count} "
            "embeddings: tokenizer and model do not match. Name the model's own tokenizer with "
            "--model.tokenizer.",
        )
        for kind, token, number in (
            ("EOS", tokenizer.eos_token, tokenizer.eos_token_id),
            ("pad", tokenizer.pad_token, tokenizer.pad_token_id),
        )
        if isinstance(number, int) and number >= count
    ]
    if problems:
        raise RecipeError(problems)


def check_vocabulary(features: Features, tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Raise DataError for the first encoded row with a token that the model has no embedding for.

    The rows of a stream are not known yet; `guard_embeddings` checks them.
    """
    if max_token_id(tokenizer) < count or not isinstance(features.dataset, Sequence):
        return
    for index, row in enumerate(features.dataset):
        largest = max(
            int(max(ids)) for name, ids in row.items() if name.endswith("_ids") and len(ids)
        )
        if largest >= count:
            message = beyond(tokenizer, largest, count)
            raise DataError(f"{features.locate(index)}: {message}")


def guard_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a model raise DataError for a token beyond its embeddings, where there can be one.

    Streams and rows to predict are not known beforehand; torch would raise an IndexError, or on a
    GPU end the process.
    """
    count = num_embeddings(model)
    if max_token_id(tokenizer) < count:
        return

    def check(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        largest = int(arguments[0].max())
        if largest >= count:
            raise DataError(beyond(tokenizer, largest, count))

    model.get_input_embeddings().register_forward_pre_hook(check)


def beyond(tokenizer: PreTrainedTokenizerBase, number: int, count: int) -> str:
    """Describe a token that has no embedding."""
    token = tokenizer.convert_ids_to_tokens(number)
    return (
        f"{token!r} is token {number}, beyond the model's vocabulary of {count}: "
        "tokenizer and model do not match."
    )
