"""Find the local files of a split, and tell a local path from a Hub id."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path

from pipelines.data.readers import ACCEPTED, is_accepted, suffix_of
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError
from pipelines.paths import names_in, nearest_path

SHARD = re.compile(  # the Hub's own exports once ended in a hash
    r"(?P<name>.*?)[-_.](?P<index>\d+)(?:-of-(?P<count>\d+)(?:-[0-9a-f]{8,})?)?", re.IGNORECASE
)

METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets` saves next to its rows."""


def is_local(source: DatasetSource) -> bool:
    """Tell a path from a Hub id. Raise DataError for a path that does not exist.

    A pattern with `*`, `?` or `[` is one of local files.
    """
    path = local_path(source)
    text = source.path
    if path.exists() or is_pattern(source):
        return True
    message = f"{text}: no such file or folder."
    nearest = nearest_path(path)
    hint = f" Did you mean {nearest}?" if nearest else ""
    looks_local = is_accepted(path) or path.is_absolute() or text.startswith((".", "~"))
    if looks_local or text.endswith("/") or text.count("/") > 1:
        raise DataError(message + hint)
    folder = path.parent
    of_hub = source.name or source.revision
    if folder.name and folder.is_dir() and (nearest or not of_hub):
        raise DataError(
            f"{message}{hint} There is a folder {folder}, so this was read as a path. To load "
            f"the dataset {text} of the Hub, run the command from another folder."
        )
    return False


def local_path(source: DatasetSource) -> Path:
    """Return the path of a source, with `~` expanded."""
    return Path(os.path.expanduser(source.path))  # noqa: PTH111 - raises for an unknown user


def is_pattern(source: DatasetSource) -> bool:
    """Tell whether a source is a pattern of files, such as "web/*.jsonl"."""
    return has_magic(source.path) and not local_path(source).exists()


def matching_files(source: DatasetSource) -> tuple[Path, ...]:
    """Return the files that a pattern names, sorted. Raise DataError if there are none."""
    names = sorted(glob(str(local_path(source)), recursive=True))  # noqa: PTH207 - of any folder
    files = tuple(file for file in map(Path, names) if is_accepted(file) and file.is_file())
    if not files:
        text = f"{source.path}: no file with this pattern has rows. Accepted: {ACCEPTED}."
        raise DataError(text)
    return files


def split_files(source: DatasetSource, split: str) -> tuple[Path, ...]:
    """Return the files of a split, in order; those of a pattern are of every split.

    In a folder these are a file `split.*`, its shards, or the files of a subfolder `split`; else
    all documents of a folder of text files, if no other split is named. Raise DataError if there
    are no files, if they are ambiguous, or if a shard is missing.
    """
    path = local_path(source)
    if is_pattern(source):
        return matching_files(source)
    if not path.is_dir():
        return (path,)
    for folder in (path, path / "data"):
        candidates = list(_candidates(folder, split))
        if len(candidates) > 1:
            names = " and ".join(str(files[0].relative_to(path)) for files in candidates)
            raise DataError(f"{path}: split {split!r} is ambiguous: {names}. Give one as the path.")
        if candidates:
            return candidates[0]
    only = source.eval_split is None and source.test_split is None
    whole = _unnamed(path) if only and split == source.train_split else ()
    if whole:
        return whole
    there = ", ".join(names_in(path)) or "nothing"
    text = f"{path}: no file for split {split!r} ({there} there). Accepted: {split} with {ACCEPTED}"
    raise DataError(f"{text}; or shards such as {split}-00000-of-00002.parquet.")


def has_split(folder: Path, split: str) -> bool:
    """Tell whether a folder has files that are named after a split."""
    return any(True for each in (folder, folder / "data") for _ in _candidates(each, split))


def _candidates(folder: Path, split: str) -> Iterator[tuple[Path, ...]]:
    """Yield each file, group of shards and subfolder that is named after a split."""
    files = data_files(folder)
    named = [file for file in files if _stem(file).lower() == split.lower()]
    yield from ((file,) for file in named)
    shards: dict[str, list[Path]] = {}
    for file in files:
        shard = SHARD.fullmatch(_stem(file))
        if shard and shard["name"].lower() == split.lower() and (shard["count"] or not named):
            shards.setdefault(file.name[len(_stem(file)) :].lower(), []).append(file)
    yield from map(_complete, shards.values())
    for name in names_in(folder):
        inside = data_files(folder / name) if name.lower() == split.lower() else []
        if len({suffix_of(file) for file in inside}) > 1:
            names = ", ".join(file.name for file in inside)
            raise DataError(f"{folder / name}: files of several formats: {names}.")
        if inside:
            yield _complete(inside)


def _unnamed(folder: Path) -> tuple[Path, ...]:
    """Return the documents or the one set of shards in a folder."""
    files = data_files(folder)
    if files and all(suffix_of(file) == ".txt" for file in files):
        return tuple(files)
    names = {(m["name"], suffix_of(f)) for f in files if (m := SHARD.fullmatch(_stem(f)))}
    shards = len(names) == 1 and all(SHARD.fullmatch(_stem(file)) for file in files)
    return _complete(files) if shards else ()


def data_files(folder: Path) -> list[Path]:
    """Return the files of a folder that have an accepted suffix, by name."""
    names = (name for name in names_in(folder) if not name.startswith("."))
    files = (folder / name for name in names if name not in METADATA_FILES)
    return [file for file in files if is_accepted(file) and file.is_file()]


def _stem(file: Path) -> str:
    """Return a file's name without its suffix and that of its compression."""
    suffix = suffix_of(file)
    return file.name[: file.name.lower().rindex(suffix)]


def _complete(files: list[Path]) -> tuple[Path, ...]:
    """Return shards in order. Raise DataError if some are missing."""
    shards = {file: SHARD.fullmatch(_stem(file)) for file in files}
    counts = {int(shard["count"]) for shard in shards.values() if shard and shard["count"]}
    if len(counts) > 1 or (counts and {len(files)} != counts):
        text = f"{len(files)} shards are there, but their names say {max(counts)}"
        raise DataError(f"{files[0].parent}: {text}: {', '.join(file.name for file in files)}.")
    if all(shards.values()):
        return tuple(sorted(files, key=lambda file: int(shards[file]["index"])))  # type: ignore[index]
    return tuple(files)


def is_path(name: str) -> bool:
    """Tell whether a name is an explicit path: it starts with "." or "/"."""
    return name.startswith((".", "/"))
