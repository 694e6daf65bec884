"""Prompts and replies as tokens, from columns or from messages of a chat.

A reply is encoded separately from its prompt, so that training reads the same tokens as generation.
It ends in EOS, which is learned although it is the pad token too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Le

from pipelines.errors import DataError
from pipelines.tasks.base import Task, token_ids
from pipelines.tasks.chat_forms import begins_with_turn, looks_like_turns, read_turns
from pipelines.tasks.encoding import BATCH_WITH_OFFSETS, in_batches
from pipelines.tasks.generation import Generation, Turn, trim_reply
from pipelines.tasks.interface import Interface

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipelines.data.rows import Examples

Prompt = str | list[dict[str, str]]
"""A text, or the messages of a chat, the last one of the user."""
CHAT_COLUMNS = ("system", "tools", "functions")
REPEATED = "repeated prompt"
"""The name of replies that begin with their prompt, where they are counted."""
IGNORED = -100  # the label of a token that is not learned

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set text = message['content'] | replace(eos_token, '') | trim -%}
{%- if message['role'] == 'assistant' -%}
{{- 'Assistant:\\n' -}}
{%- generation -%}{{- text + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- message['role'] | capitalize + ':\\n' + text + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}"""
"""Messages as plain text, since EOS is the only special token of GPT-2; EOS ends each reply."""


@dataclass(frozen=True)
class Exchange:
    """Tokens of a prompt and its reply.

    `labels` are `input_ids` where a reply is learned, else -100. `start` is the position of the
    last reply; all tokens before it are the prompt.
    """

    input_ids: list[int]
    labels: list[int]
    start: int

    @property
    def prompt_ids(self) -> list[int]:
        """Return the tokens before the last reply."""
        return self.input_ids[: self.start]

    @property
    def reply_ids(self) -> list[int]:
        """Return the last reply."""
        return self.input_ids[self.start :]

    def truncated(self, max_length: int) -> Exchange:
        """Return the exchange in `max_length` tokens, without the beginning of its prompt.

        A reply that is longer than that loses its end, EOS included.
        """
        cut = min(max(len(self.input_ids) - max_length, 0), self.start - 1)
        span = slice(cut, cut + max_length)
        labels = [IGNORED, *self.labels[span][1:]]  # nothing predicts the first token
        return Exchange(self.input_ids[span], labels, self.start - cut)


@dataclass(frozen=True, kw_only=True)
class ReplyTask(Task):
    """Options and behaviour of the tasks whose models reply to prompts."""

    prompt_format: str = "{prompt}"
    """Prompt of a row, its columns in braces; a space or line break separates it from the reply."""
    chat: bool = False
    """Read messages and format them with the tokenizer's chat template.
    The reply's column holds the whole chat, or the reply alone after the chat in prompt_format's.
    Messages are {"role", "content"}, {"from", "value"}, or text of Human: and Assistant: turns."""
    max_length: Annotated[int, Ge(16)] = 512
    """Most tokens of a row; a longer row loses the beginning of its prompt, and is counted."""
    max_truncated_fraction: Annotated[float, Ge(0), Le(1)] = 1.0
    """Stop if more than this fraction of the rows is truncated."""
    generation: Generation = field(default_factory=Generation)
    """How replies are generated, for the evaluation and by `gpt2-recipes generate`."""

    pipeline_tag: ClassVar[str] = "text-generation"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    chat_template: ClassVar[str | None] = CHAT_TEMPLATE
    grouped_by: ClassVar[str] = "prompt"
    writes_replies: ClassVar[bool] = True

    def problems(self) -> Iterator[tuple[str, str]]:
        messages = list(format_problems(self.prompt_format))
        for message in messages:
            yield "prompt_format", message
        if self.chat and not messages and len(columns_of(self.prompt_format)) > 1:
            yield "prompt_format", "names the one column of messages before the reply in a chat."

    @property
    def default_generation(self) -> Generation:
        return self.generation

    @property
    def reply_column(self) -> str:
        """Return the column of the reply that is to become likelier."""
        raise NotImplementedError

    def columns(self) -> Iterator[tuple[str, str]]:
        yield from super().columns()
        if not self.chat:
            for column in columns_of(self.prompt_format):
                yield "prompt_format", column

    def inputs(self, row: dict[str, Any]) -> Hashable:
        prompt = self.prompt(row, "")
        return prompt.rstrip(" ") if isinstance(prompt, str) else json.dumps(prompt)

    def row(self, text: str) -> dict[str, Any]:
        """Return the row of a prompt that a user types.

        Raise DataError if a prompt has several columns.
        """
        if self.chat:
            return {self.reply_column: [{"role": "user", "content": text}]}
        columns = columns_of(self.prompt_format)
        if len(columns) > 1:
            raise DataError(
                f"a prompt has the columns {', '.join(columns)}. Give rows with these columns."
            )
        return {columns[0]: text}

    def turns(self, row: dict[str, Any], column: str, location: str) -> list[dict[str, str]]:
        """Return the messages in a column.

        If they begin with a reply, those in the prompt's column come first. Raise DataError if
        neither column holds messages.
        """
        before = columns_of(self.prompt_format)[0]
        name = column
        try:
            turns = read_turns(row.get(column), "assistant")
            if not turns or turns[0]["role"] == "assistant":
                name = before
                turns = read_turns(row.get(before), "user") + turns
        except ValueError as error:
            raise DataError(f"{location}: column {name!r}: {error}") from None
        if not turns:
            raise DataError(
                f"{location}: column {column!r}: {row.get(column)!r} is not a list of messages. "
                f"Columns: {', '.join(row)}.{self.hint_at_messages(row, column)}"
            )
        return turns

    def hint_at_messages(self, row: dict[str, Any], column: str) -> str:
        """Return a hint at the columns of a row that hold messages, or ""."""
        names = [name for name, value in row.items() if looks_like_turns(value)]
        option = next(f.name for f in fields(self) if getattr(self, f.name) == column)
        flag = f"--task.{option.replace('_', '-')}"
        return f" Messages are in column {' and '.join(names)}: use {flag}." if names else ""

    def prompt(self, row: dict[str, Any], location: str) -> Prompt:
        """Return the prompt of a row. Raise DataError if it has none."""
        if not self.chat:
            return fill_format(self.prompt_format, row, location)
        turns = self.turns(row, self.reply_column, location)
        answered = len(turns) > 1 and turns[-1]["role"] == "assistant"
        return turns[:-1] if answered else turns

    def read_exchange(self, row: dict[str, Any], column: str, location: str) -> tuple[Prompt, str]:
        """Return a row's prompt and the reply in a column.

        Raise DataError if either is missing.
        """
        reply = row.get(column)
        if self.chat:
            turns = self.turns(row, column, location)
            if turns[-1]["role"] != "assistant":
                raise DataError(f"{location}: the last message is of the {turns[-1]['role']}.")
            if len(turns) == 1:
                raise DataError(f"{location}: a reply to nothing. Columns: {', '.join(row)}.")
            return turns[:-1], turns[-1]["content"].strip()
        if not isinstance(reply, str) or not reply.strip():
            hint = " It holds messages: use --task.chat." if looks_like_turns(reply) else ""
            raise DataError(
                f"{location}: column {column!r} holds {reply!r}, not a reply. "
                f"Columns: {', '.join(row)}.{hint}"
            )
        texts = [row.get(name) for name in columns_of(self.prompt_format)]
        if not all(isinstance(text, str) for text in texts) and begins_with_turn(reply):
            raise DataError(
                f"{location}: column {column!r} holds turns of Human: and Assistant:. "
                "Use --task.chat."
            )
        return fill_format(self.prompt_format, row, location), trim_reply(reply)

    def label_cautions(self, train: Examples) -> Iterator[str]:
        """Yield cautions about replies, from one pass over the rows."""
        rows = enumerate(train.rows)
        counts = Counter(name for i, row in rows for name in self.oddities(train, i, row))
        yield from self.oddity_cautions(counts, train.num_rows)

    def oddities(self, examples: Examples, index: int, row: dict[str, Any]) -> Iterator[str]:
        """Yield names of what is counted for cautions: here columns of chats, and REPEATED."""
        if self.chat:
            yield from (name for name in CHAT_COLUMNS if row.get(name))
            return
        prompt, reply = row[columns_of(self.prompt_format)[0]].strip(), row.get(self.reply_column)
        if prompt and isinstance(reply, str) and reply.lstrip().startswith(prompt):
            yield REPEATED

    def oddity_cautions(self, counts: Counter[str], num_rows: int) -> Iterator[str]:
        """Yield a caution if most replies repeat their prompts, and for unread columns of chats."""
        first = columns_of(self.prompt_format)[0]
        if 2 * counts[REPEATED] > num_rows:
            yield (
                f"{counts[REPEATED]:,} of {num_rows:,} replies in column {self.reply_column!r} "
                f"begin with the text of column {first!r}, which the prompt holds already: the "
                "model learns to repeat it. Leave it out of the replies"
            )
        for name in CHAT_COLUMNS:
            if counts[name] and name not in columns_of(self.prompt_format):
                yield (
                    f"column {name!r} of {counts[name]:,} rows is not read: what belongs to a chat "
                    "goes into its messages"
                )

    def prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        prompts = [self.prompt(row, examples.locate(i)) for i, row in enumerate(examples.rows)]
        return encode_prompts(tokenizer, prompts)

    @property
    def interface(self) -> Interface:
        if self.chat:
            return Interface((), "chat")
        return Interface(tuple(columns_of(self.prompt_format)), "text")

    def texts_of_input(self, text: str) -> tuple[str, ...]:
        """Return the text of the prompt's only column."""
        if len(self.interface.columns) != 1:
            return ()
        before, _, after = self.prompt_format.format_map(
            dict.fromkeys(self.interface.columns, "\0")
        ).partition("\0")
        after = after.rstrip(" ")
        fits = text.startswith(before) and text.endswith(after)
        return (text.removeprefix(before).removesuffix(after),) if fits else ()

    @property
    def keeps_turns(self) -> bool:
        """Tell whether the model was trained on chats, and not on single prompts."""
        return self.chat

    @property
    def chat_hint(self) -> str:
        if self.chat:
            return "It reads the whole conversation."
        first, *others = columns_of(self.prompt_format)
        empty = f" What you type is its {first}; {', '.join(others)} stays empty." if others else ""
        return f"It was trained on single prompts: earlier messages are not read.{empty}"

    def conversation(
        self, turns: Sequence[Turn], text: str, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        if not self.chat:
            first, *others = columns_of(self.prompt_format)
            row = {first: text} | dict.fromkeys(others, "")
            return encode_prompts(tokenizer, [fill_format(self.prompt_format, row, "message")])[0]
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": turn.message})
            messages.append({"role": "assistant", "content": turn.reply})
        return encode_prompts(tokenizer, [[*messages, {"role": "user", "content": text}]])[0]


def format_problems(prompt_format: str) -> Iterator[str]:
    """Yield what is wrong with a prompt format."""
    try:
        columns = columns_of(prompt_format)
    except ValueError as error:
        yield f"{prompt_format!r} is not a format: {error}. Write {{{{ and }}}} for braces."
        return
    if not columns:
        yield f"{prompt_format!r} names no column in braces, as {{prompt}}."
    for column in columns:
        if not column or not column.replace("_", "").replace("-", "").replace(" ", "").isalnum():
            yield f"{prompt_format!r}: {{{column}}} is not the name of a column."


def columns_of(prompt_format: str) -> list[str]:
    """Return the columns that a prompt format names, each once."""
    names = [name for _, name, _, _ in Formatter().parse(prompt_format) if name is not None]
    return list(dict.fromkeys(names))


def fill_format(prompt_format: str, row: dict[str, Any], location: str) -> str:
    """Return the prompt of a row. Raise DataError for a column that holds no text.

    One column of several may be empty.
    """
    columns = columns_of(prompt_format)
    for column in columns:
        if not isinstance(row.get(column), str):
            hint = (
                " It holds messages: use --task.chat." if looks_like_turns(row.get(column)) else ""
            )
            raise DataError(
                f"{location}: column {column!r} holds {row.get(column)!r}, not a text. "
                f"Columns: {', '.join(row)}.{hint}"
            )
    if not any(row[column].strip() for column in columns):
        raise DataError(f"{location}: the prompt is empty.")
    return prompt_format.format_map({column: row[column] for column in columns})


def as_arrays(row: dict[str, list[int]]) -> dict[str, Any]:
    """Return a row of token ids as arrays, which take less memory than lists."""
    import numpy as np

    return {name: np.array(ids, np.int32) for name, ids in row.items()}


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the tokens of prompts, all texts or all chats, without a space at their ends.

    A reply begins with that space.
    """
    texts = [prompt.rstrip(" ") for prompt in prompts if isinstance(prompt, str)]
    if texts or not prompts:
        return token_ids(tokenizer, texts)
    encoded = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)
    input_ids: list[list[int]] = encoded["input_ids"]
    return input_ids


def encode_rows(
    tokenizer: Any, rows: Iterable[tuple[Prompt, Sequence[str]]]
) -> Iterator[list[Exchange]]:
    """Yield the exchanges of each row, which is a prompt with its replies, see `encode_exchanges`.

    Rows are encoded in batches.
    """
    for batch in in_batches(rows, num_characters, BATCH_WITH_OFFSETS):
        pairs = [(prompt, reply) for prompt, replies in batch for reply in replies]
        exchanges = iter(encode_exchanges(tokenizer, pairs))
        for _, replies in batch:
            yield [next(exchanges) for _ in replies]


def num_characters(row: tuple[Prompt, Sequence[str]]) -> int:
    """Return the characters of a prompt with each of its replies."""
    prompt, replies = row
    texts = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    return len(replies) * sum(map(len, texts)) + sum(map(len, replies))


def encode_exchanges(tokenizer: Any, pairs: Sequence[tuple[Prompt, str]]) -> list[Exchange]:
    """Return the tokens of prompts with their replies, and those that are learned.

    After a text prompt only the reply is learned; it begins with a space or on a new line. In a
    chat every reply is learned. Raise DataError if the checkpoint's own chat template marks no
    replies, ends them without EOS, or renders a prompt differently from the chat that begins with
    it.
    """
    texts = [(prompt, reply) for prompt, reply in pairs if isinstance(prompt, str)]
    if texts or not pairs:
        return text_exchanges(tokenizer, texts)
    befores = encode_prompts(tokenizer, [prompt for prompt, _ in pairs])
    chats = [[*prompt, {"role": "assistant", "content": reply}] for prompt, reply in pairs]
    encoded = tokenizer.apply_chat_template(
        chats, return_dict=True, return_assistant_tokens_mask=True
    )
    parts = zip(befores, encoded["input_ids"], encoded["assistant_masks"], strict=True)
    return [chat_exchange(*each, tokenizer) for each in parts]


def text_exchanges(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Exchange]:
    """Return the tokens of text prompts, each different one encoded once, with their replies."""
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    befores = dict(zip(prompts, encode_prompts(tokenizer, prompts), strict=True))
    replies = [joined_reply(prompt, reply) for prompt, reply in pairs]
    eos, exchanges = tokenizer.eos_token_id, []
    for (prompt, _), ids in zip(pairs, token_ids(tokenizer, replies), strict=True):
        before, after = befores[prompt], [*ids, eos]
        labels = [IGNORED] * len(before) + after
        exchanges.append(Exchange(before + after, labels, len(before)))
    return exchanges


def joined_reply(prompt: str, reply: str) -> str:
    """Return a reply as it follows its prompt: after a space, or on a new line.

    On a new line it keeps its indentation. Spaces that end the prompt there belong to the reply,
    unless it is a single one.
    """
    before = prompt.rstrip(" ")
    if before.endswith("\n"):
        spaces = prompt[len(before) :]
        return ("" if len(spaces) == 1 else spaces) + reply.removeprefix("\n")
    return reply if reply.startswith("\n") else " " + reply.lstrip()


def chat_exchange(before: list[int], ids: list[int], mask: list[int], tokenizer: Any) -> Exchange:
    """Return the tokens of a chat, of which those of the replies have a mask of 1.

    `before` are the tokens of its prompt. What the template writes after the last reply, such as a
    line break, is left out.
    """
    start = len(before)
    end = len(mask) - mask[::-1].index(1) if any(mask) else 0
    if ids[:start] != before or start >= end or not all(mask[start:end]):
        raise DataError(
            "the tokenizer's chat template does not mark replies with {% generation %}, or renders "
            "a prompt differently from the chat that begins with it."
        )
    if tokenizer.eos_token_id not in ids[start:end]:
        raise DataError(
            f"the tokenizer's chat template ends replies with {tokenizer.decode(ids[end - 1])!r} "
            f"and not with the EOS token {tokenizer.eos_token!r}, so that a model would not learn "
            "to stop. Write {{ eos_token }} before {% endgeneration %}, or set eos_token in "
            "tokenizer_config.json to what ends a reply."
        )
    labels = [token if learned else IGNORED for token, learned in zip(ids, mask, strict=True)]
    return Exchange(ids[:end], labels[:end], start)
