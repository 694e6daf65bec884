"""README.md and the other documents, as tests read them."""

import re
from pathlib import Path

from helpers.factories import ROOT

README = ROOT / "README.md"
PAGES = (
    README,
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "CHANGELOG.md")),
)


def text_of(page: Path) -> str:
    """Return the text of a page."""
    return page.read_text(encoding="utf-8")


def blocks_of(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language; "" for those that name none."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    return [block for named, block in fences if named == language]


def commands_of(block: str) -> list[str]:
    """Return the commands of a block, one a line."""
    return block.replace("\\\n", " ").splitlines()


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    outside = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", outside, re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        numbered = (
            f"{anchor}-{number}" if number else anchor for number in range(len(anchors) + 1)
        )
        anchors.add(next(each for each in numbered if each not in anchors))
    return anchors


def links_of(page: Path) -> list[str]:
    """Return the targets of the links and pictures of a page that lead into the repository."""
    outside = re.sub(r"^```.*?^```|`[^`\n]*`", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", outside)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]
