"""Paths that exist, near those that were typed. Imports nothing of the package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path


def nearest_path(path: Path) -> Path | None:
    """Return the existing path that is nearest in spelling, part by part."""
    nearest = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        if part != ".." and not (nearest / part).exists():
            matches = get_close_matches(part, names_in(nearest), n=1)
            if not matches:
                return None
            part = matches[0]
        nearest = nearest / part
    return nearest


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none if it cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
