"""Load a tokenizer, or train one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as TokenizersTokenizer
from transformers import GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipelines.console import console
from pipelines.models.checkpoint_checks import read_config
from pipelines.models.tokenizer_checks import read_tokenizer
from pipelines.recipe.values import Model, Scratch
from pipelines.tasks.spans import CONTRACTION_OR_SYMBOL

EOS = "<|endoftext|>"


def load_tokenizer(
    model: Model | Scratch,
    texts: Iterable[str],
    *,
    max_length: int,
    chat_template: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load the checkpoint's tokenizer, or train one on `texts`.

    EOS is the pad token of a tokenizer without one, or if the model has no embedding for it.
    `chat_template` is for a tokenizer without a template. Texts get no special tokens around them.
    """
    wanted = model.tokenizer if isinstance(model, Scratch) else model
    tokenizer: PreTrainedTokenizerBase
    if isinstance(wanted, Model):
        name, revision = wanted.tokenizer_source
        path = "model.tokenizer" if wanted.tokenizer else "model.name_or_path"
        tokenizer = read_tokenizer(name, revision, path=path)
    elif wanted.kind == "char":
        tokenizer = train_char_tokenizer(texts)
    else:
        tokenizer = train_bpe_tokenizer(texts, wanted.vocab_size)
    if isinstance(model, Model):
        replace_pad_token(tokenizer, read_config(model, None, "model.name_or_path"))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = chat_template
    add_no_special_tokens(tokenizer)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = model.n_positions if isinstance(model, Scratch) else max_length
    return tokenizer


def replace_pad_token(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Pad with EOS, and print so, if a model has no embedding for the tokenizer's pad token."""
    number = getattr(config.get_text_config(), "vocab_size", None)
    pad = tokenizer.pad_token_id
    if number is not None and isinstance(pad, int) and pad >= number:
        console().print(
            f"  padding: the pad token {tokenizer.pad_token!r} is token {pad}, beyond the model's "
            f"{number} embeddings; {tokenizer.eos_token!r} pads instead",
            markup=False,
        )
        tokenizer.pad_token = tokenizer.eos_token


def add_no_special_tokens(tokenizer: Any) -> None:
    """Let a fast tokenizer add no BOS and no EOS to a text, as other families' tokenizers do.

    Tasks place these tokens themselves. Programs that load the result, such as a transformers
    pipeline, then read a text as training did.
    """
    if tokenizer.is_fast and tokenizer.num_special_tokens_to_add():
        tokenizer.add_bos_token = False
        tokenizer.add_eos_token = False


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train GPT-2's byte-level BPE, without merges of digits or of punctuation.

    It then reads numbers digit by digit, and a context of `QuestionAnswering` as any text.
    """
    bpe = TokenizersTokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CONTRACTION_OR_SYMBOL), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return GPT2Tokenizer(vocab=model["vocab"], merges=merges, eos_token=EOS, pad_token=EOS)


def train_char_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Give each character of the texts a token; another character becomes EOS."""
    characters = sorted({character for text in texts for character in text})
    vocab = {EOS: 0} | {c: i for i, c in enumerate(characters, start=1)}
    backend = TokenizersTokenizer(models.BPE(vocab=vocab, merges=[], unk_token=EOS))
    backend.decoder = decoders.Fuse()
    untyped: Any = PreTrainedTokenizerFast
    special = dict.fromkeys(("eos_token", "pad_token", "unk_token", "bos_token"), EOS)
    tokenizer: PreTrainedTokenizerBase = untyped(tokenizer_object=backend, **special)
    return tokenizer
