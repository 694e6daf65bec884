"""Render a chat template from outside in a process with bounded time and memory.

Run as a script: it reads JSON from standard input and imports no module of this project. It exits
with 0 if every conversation was rendered, or refused by the template.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEMORY, CHARACTERS = 2, 1 << 29, 1 << 20


class Generation(Extension):
    """The block that marks what an assistant says, as transformers has it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def render(template: str, tokens: dict[str, str]) -> None:
    """Render conversations of several lengths. Raise ValueError for a text that grows too long."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment.filters["tojson"] = lambda value, **options: json.dumps(value)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": str}
    compiled = environment.from_string(template)
    roles = ["user", "assistant"] * 16
    for first in ([], ["system"]):
        for turns in (1, 2, 3, 32):
            messages = [{"role": r, "content": "Some text."} for r in first + roles[:turns]]
            for prompt in (False, True):
                options = {"messages": messages, "add_generation_prompt": prompt, "tools": None}
                try:
                    text = compiled.render(**tokens, **options)
                except (TemplateError, LookupError, TypeError, ValueError):
                    continue  # as for a role that it refuses
                if len(text) > CHARACTERS:
                    raise ValueError(f"it makes {len(text):,} characters of {turns} turns")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    render(**json.load(sys.stdin))
