"""Prompts and replies as tokens: from a format with columns, or from the turns of a chat.

A reply is encoded apart from its prompt, so that training reads the same tokens as generation
does, and it ends in EOS, which is learned though it is the pad token too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from string import Formatter
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from pipelines.errors import DataError
from pipelines.tasks.base import Task, literal, token_ids
from pipelines.tasks.chat_forms import begins_with_turn, looks_like_turns, read_turns
from pipelines.tasks.generation import Generation

Prompt = str | list[dict[str, str]]
"""A text, or the turns of a chat that ends with the user's."""
BESIDE_CHATS = ("system", "tools", "functions")
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
"""Turns as plain text, since GPT-2 has no token but EOS to mark them with; EOS ends each reply."""


@dataclass(frozen=True)
class Exchange:
    """A prompt and its reply: `labels` are `input_ids` where a reply is learned, else -100.

    `start` is where the last reply begins; what stands before it is the prompt.
    """

    input_ids: list[int]
    labels: list[int]
    start: int

    @property
    def prompt_ids(self) -> list[int]:
        """Return what a model continues by the last reply."""
        return self.input_ids[: self.start]

    @property
    def reply_ids(self) -> list[int]:
        """Return the last reply."""
        return self.input_ids[self.start :]

    def fitted(self, max_length: int) -> Exchange:
        """Return it in `max_length` tokens: the beginning of the prompt goes, the reply stays.

        A reply that fills the length alone loses its end, and so learns none.
        """
        cut = min(max(len(self.input_ids) - max_length, 0), self.start - 1)
        kept = slice(cut, cut + max_length)
        labels = [IGNORED, *self.labels[kept][1:]]  # the first token is predicted by none
        return Exchange(self.input_ids[kept], labels, self.start - cut)


@dataclass(frozen=True, kw_only=True)
class ReplyTask(Task):
    """What the tasks have in common whose models reply to prompts."""

    prompt_format: str = "{prompt}"
    """Prompt of a row, with its columns in braces; the reply follows after a space or new line."""
    chat: bool = False
    """A reply's column holds the messages that end with it, or the reply alone after those in the
    column of prompt_format, and the tokenizer's chat template makes the prompt. Messages are
    {"role", "content"}, ShareGPT's {"from", "value"}, or texts of Human: and Assistant: turns."""
    max_length: Annotated[int, Ge(16)] = 512
    """Tokens of a row; a longer one loses the beginning of its prompt, and is counted."""
    max_truncated_fraction: Annotated[float, Ge(0), Le(1)] = 1.0
    """Stop when a larger share of the rows was cut."""
    generation: Generation = field(default_factory=Generation)
    """How replies are written, to be scored and by `gpt2-recipes generate`."""

    does: ClassVar[str] = "replies to prompts"
    limits: ClassVar[str] = "It replies as its training rows do, also where they are wrong."
    pipeline_tag: ClassVar[str] = "text-generation"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    chat_template: ClassVar[str | None] = CHAT_TEMPLATE
    grouped_by: ClassVar[str] = "prompt"
    writes_replies: ClassVar[bool] = True

    def problems(self) -> Iterator[tuple[str, str]]:
        found = list(format_problems(self.prompt_format))
        for message in found:
            yield "prompt_format", message
        if self.chat and not found and len(columns_of(self.prompt_format)) > 1:
            yield "prompt_format", "names the one column of messages before the reply in a chat."

    @property
    def default_generation(self) -> Generation:
        return self.generation

    @property
    def reply_column(self) -> str:
        """Return the column of the reply that is to become likelier."""
        raise NotImplementedError

    def columns(self):
        yield from super().columns()
        if not self.chat:
            for column in columns_of(self.prompt_format):
                yield "prompt_format", column

    def inputs(self, row):
        prompt = self.prompt(row, "")
        return prompt.rstrip(" ") if isinstance(prompt, str) else json.dumps(prompt)

    def row(self, text):
        """Return a row of a prompt that somebody types."""
        if self.chat:
            return {self.reply_column: [{"role": "user", "content": text}]}
        columns = columns_of(self.prompt_format)
        if len(columns) > 1:
            raise DataError(
                f"a prompt has the columns {', '.join(columns)}. Give rows with these columns."
            )
        return {columns[0]: text}

    def turns(self, row: dict[str, Any], column: str, where: str) -> list[dict[str, str]]:
        """Return the chat in a column; one that begins with a reply continues the prompt's column.

        Raise DataError where neither column holds a chat.
        """
        before = columns_of(self.prompt_format)[0]
        name = column
        try:
            turns = read_turns(row.get(column), "assistant")
            if not turns or turns[0]["role"] == "assistant":
                name = before
                turns = read_turns(row.get(before), "user") + turns
        except ValueError as error:
            raise DataError(f"{where}: column {name!r}: {error}") from None
        if not turns:
            raise DataError(
                f"{where}: column {column!r}: {row.get(column)!r} is not a list of messages. "
                f"Columns: {', '.join(row)}.{self.other_chat(row, column)}"
            )
        return turns

    def other_chat(self, row: dict[str, Any], column: str) -> str:
        """Return a hint at the columns that hold messages, for a row whose `column` holds none."""
        names = [name for name, value in row.items() if looks_like_turns(value)]
        option = next(f.name for f in fields(self) if getattr(self, f.name) == column)
        flag = f"--task.{option.replace('_', '-')}"
        return f" Messages are in column {' and '.join(names)}: use {flag}." if names else ""

    def prompt(self, row: dict[str, Any], where: str) -> Prompt:
        """Return what a row asks. Raise DataError for a row that asks nothing."""
        if not self.chat:
            return fill(self.prompt_format, row, where)
        turns = self.turns(row, self.reply_column, where)
        answered = len(turns) > 1 and turns[-1]["role"] == "assistant"
        return turns[:-1] if answered else turns

    def said(self, row: dict[str, Any], column: str, where: str) -> tuple[Prompt, str]:
        """Return what a row asks, and the reply in a column. Raise DataError if there is none."""
        reply = row.get(column)
        if self.chat:
            turns = self.turns(row, column, where)
            if turns[-1]["role"] != "assistant":
                raise DataError(f"{where}: the last message is of the {turns[-1]['role']}.")
            if len(turns) == 1:
                raise DataError(f"{where}: a reply to nothing. Columns: {', '.join(row)}.")
            return turns[:-1], turns[-1]["content"].strip()
        if not isinstance(reply, str) or not reply.strip():
            hint = " It holds messages: use --task.chat." if looks_like_turns(reply) else ""
            raise DataError(
                f"{where}: column {column!r} holds {reply!r}, not a reply. "
                f"Columns: {', '.join(row)}.{hint}"
            )
        asked = [row.get(name) for name in columns_of(self.prompt_format)]
        if not all(isinstance(text, str) for text in asked) and begins_with_turn(reply):
            raise DataError(
                f"{where}: column {column!r} holds turns of Human: and Assistant:. Use --task.chat."
            )
        return fill(self.prompt_format, row, where), reply.strip()

    def label_cautions(self, train):
        """Yield a caution about columns that often belong to a chat and are not read."""
        counts = {
            name: sum(bool(row.get(name)) for row in train.rows) if self.chat else 0
            for name in BESIDE_CHATS
        }
        for name, count in counts.items():
            if count and name not in columns_of(self.prompt_format):
                yield (
                    f"column {name!r} of {count:,} rows is not read: what belongs to a chat goes "
                    "into its messages"
                )

    def prompts(self, examples, tokenizer):
        asked = [self.prompt(row, examples.where(i)) for i, row in enumerate(examples.rows)]
        return [encode_prompt(tokenizer, prompt) for prompt in asked]

    def example_row(self):
        if self.chat:
            return self.row("Good morning")
        return dict.fromkeys(columns_of(self.prompt_format), "Good morning")

    def example_lines(self):
        if self.chat:
            asked = [
                f"messages = {literal(self.example_row()[self.reply_column])}",
                "inputs = tokenizer.apply_chat_template(",
                '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
                ")",
            ]
        else:
            prompt = self.prompt_format.format_map(self.example_row()).rstrip(" ")
            asked = [
                f"prompt = {literal(prompt)}",
                'inputs = tokenizer(prompt, return_tensors="pt")',
            ]
        most = self.generation.max_new_tokens
        return [
            *asked,
            f"output = model.generate(**inputs, max_new_tokens={most}, do_sample=False)",
            'written = output[0, inputs["input_ids"].shape[1] :]',
            "print(tokenizer.decode(written, skip_special_tokens=True))",
        ]


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


def fill(prompt_format: str, row: dict[str, Any], where: str) -> str:
    """Return the prompt of a row. Raise DataError for a column that holds no text.

    A column may be empty, but not the whole prompt.
    """
    columns = columns_of(prompt_format)
    for column in columns:
        if not isinstance(row.get(column), str):
            hint = (
                " It holds messages: use --task.chat." if looks_like_turns(row.get(column)) else ""
            )
            raise DataError(
                f"{where}: column {column!r} holds {row.get(column)!r}, not a text. "
                f"Columns: {', '.join(row)}.{hint}"
            )
    if not any(row[column].strip() for column in columns):
        raise DataError(f"{where}: the prompt is empty.")
    return prompt_format.format_map({column: row[column] for column in columns})


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt; a space at its end belongs to the reply."""
    if isinstance(prompt, str):
        return token_ids(tokenizer, [prompt.rstrip(" ")])[0]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]


def exchange(tokenizer: Any, prompt: Prompt, reply: str) -> Exchange:
    """Return the tokens of a prompt with its reply.

    After a format only the reply is learned; it begins with a space, or on a new line. In a chat
    every reply is. Raise DataError where the checkpoint's own chat template marks no replies, or
    renders a prompt otherwise than the chat that begins with it.
    """
    before = encode_prompt(tokenizer, prompt)
    if isinstance(prompt, str):
        space = "" if prompt.rstrip(" ").endswith("\n") else " "
        after = [*token_ids(tokenizer, [space + reply])[0], tokenizer.eos_token_id]
        return Exchange(before + after, [IGNORED] * len(before) + after, len(before))
    turns = [*prompt, {"role": "assistant", "content": reply}]
    encoded = tokenizer.apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    if ids[: len(before)] != before or not all(mask[len(before) :]):
        raise DataError(
            "the tokenizer's chat template does not mark replies with {% generation %}, or renders "
            "a prompt otherwise than the chat that begins with it."
        )
    labels = [token if learned else IGNORED for token, learned in zip(ids, mask, strict=True)]
    return Exchange(ids, labels, len(before))
