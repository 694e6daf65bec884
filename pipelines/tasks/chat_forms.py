"""Read chats, in the forms that datasets have, as messages of role and content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipelines.tasks.cells import parse_literal, to_python

ROLES = ("system", "user", "assistant")
KNOWN_ROLES = {role: role for role in ROLES} | {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
TOOL_ROLES = (
    "tool",
    "function",
    "function_call",
    "function_response",
    "observation",
    "tool_call",
    "tool_response",
)
NOT_LEARNED = ("weight", "train", "trainable", "loss")
"""Keys by which OpenAI, axolotl and ms-swift mark a reply that is not to be learned."""
TEXT_PARTS = ("text", "input_text", "output_text")
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""The beginning of a turn in the texts of Anthropic's HH dataset."""
NO_TOOLS = "Calls of tools are not supported: leave the row out, or write the call as content."


def read_turns(value: Any, role: str) -> list[dict[str, str]]:
    """Return the messages in a cell as {"role", "content"}.

    Return [] for None and empty lists. Reads messages with `role` and `content`, ShareGPT's with
    `from` and `value`, contents that are lists of text parts, a single message, Anthropic HH's
    texts, and any other text as a message of `role`. Raise ValueError for anything else.
    """
    value = to_python(value)
    if value is None:
        return []
    if isinstance(value, str) and looks_like_turns(value):
        value = parse_literal(value)
    if isinstance(value, str):
        return _hh_turns(value) or [{"role": role, "content": value}]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise ValueError(f"{value!r} is not a list of messages.")
    return [_read_turn(turn) for turn in turns]


def looks_like_turns(value: Any) -> bool:
    """Tell whether a cell holds messages, and not a reply or several replies."""
    value = to_python(value)
    value = parse_literal(value) if isinstance(value, str) else value
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and ("role" in first or "from" in first)


def texts_of(value: Any) -> Iterator[str]:
    """Yield the texts that a cell holds: itself, or the contents of its messages."""
    value = to_python(value)
    if isinstance(value, str):
        yield value
    elif looks_like_turns(value):
        turns = value if isinstance(value, list) else [value]
        for turn in (turn for turn in turns if isinstance(turn, dict)):
            for content in (turn.get("content"), turn.get("value")):
                parts = content if isinstance(content, list) else [content]
                yield from (p for p in parts if isinstance(p, str))
                yield from (str(p["text"]) for p in parts if isinstance(p, dict) and "text" in p)


def begins_with_turn(text: str) -> bool:
    """Tell whether a text consists of Anthropic HH's turns."""
    return HH_TURN.match(text.strip()) is not None


def _read_turn(turn: Any) -> dict[str, str]:
    """Return a message as role and content.

    Raise ValueError if it has no known role, no text, or calls a tool.
    """
    role = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    name = role.strip().lower() if isinstance(role, str) else role
    if name in TOOL_ROLES or (isinstance(turn, dict) and _calls(turn)):
        raise ValueError(f"{turn!r} is a message of a tool. {NO_TOOLS}")
    if name not in KNOWN_ROLES:
        raise ValueError(f"{turn!r} is not a message with a role of {', '.join(ROLES)}.")
    for mark in NOT_LEARNED if KNOWN_ROLES[name] == "assistant" else ():
        if mark in turn and turn[mark] in (0, False):
            text = f"{turn!r} has {mark} {turn[mark]}: every reply of a chat is learned."
            raise ValueError(f"{text} Leave the row out, or end the chat before that reply.")
    content = turn.get("content")
    content = _text_of(turn.get("value") if content is None else content)
    if content is None or not content.strip():
        raise ValueError(f"the message {turn!r} has no text.")
    return {"role": KNOWN_ROLES[name], "content": content}


def _calls(turn: dict[str, Any]) -> bool:
    """Tell whether a message calls a tool."""
    return bool(turn.get("tool_calls") or turn.get("function_call"))


def _text_of(content: Any) -> str | None:
    """Return a content as one text, as chat templates do.

    Return None for anything but a text or a list of parts.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in TEXT_PARTS or not isinstance(text, str):
            raise ValueError(f"a message holds a part of type {kind!r}; only texts are supported.")
        texts.append(text)
    return "".join(texts)


def _hh_turns(text: str) -> list[dict[str, str]]:
    """Return the messages of a text of Human: and Assistant: turns.

    Return [] for any other text. An empty `Assistant:` at the end is the prompt for a reply, and
    left out.
    """
    if not begins_with_turn(text):
        return []
    _, *parts = HH_TURN.split(text.strip())
    turns = [
        {"role": "user" if name == "Human" else "assistant", "content": content.strip()}
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1] == {"role": "assistant", "content": ""}:
        del turns[-1]
    empty = next((turn for turn in turns if not turn["content"]), None)
    if empty:
        raise ValueError(f"the message {empty!r} has no text.")
    return turns
