"""Hooks of mkdocs: links out of docs/ are plain text on the site, which has only the pages."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each link to a file of the repository that is no page by its text."""
    return OUTSIDE.sub(r"\1", markdown)
