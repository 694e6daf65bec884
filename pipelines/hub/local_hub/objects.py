"""Files of a commit, as git and LFS name them: entries, listings and changes.

An entry has `sha256` and `size` of the content, its git id `oid`, and whether it is in `lfs`; then
git's own object is a pointer.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipelines.hub.local_hub.parsing import http_error

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".h5", ".onnx", ".gguf", ".zip")
LFS_BYTES = 10 * 1024 * 1024
Change = tuple[str, dict[str, Any] | None]
"""Path and new entry; None deletes, and a path that ends in a slash is of a folder."""


def git_entry(content: bytes, sha256: str) -> dict[str, Any]:
    """Return the entry of a regular file."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"sha256": sha256, "size": len(content), "oid": git, "lfs": False}


def lfs_entry(sha256: str, size: int) -> dict[str, Any]:
    """Return the entry of an LFS object, whose git object is a pointer."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return git_entry(pointer.encode(), sha256) | {"size": size, "lfs": True}


def lfs_pointer(file: dict[str, Any]) -> dict[str, Any]:
    """Return what listings show of an LFS object, with both names of its hash."""
    sha256 = file["sha256"]
    return {"oid": sha256, "sha256": sha256, "size": file["size"], "pointerSize": 130}


def goes_to_lfs(path: str, size: int, sample: bytes) -> bool:
    """Tell whether a file is uploaded through LFS, by its name, its size and its first bytes."""
    return path.endswith(LFS_SUFFIXES) or size > LFS_BYTES or b"\0" in sample


def list_file(path: str, file: dict[str, Any]) -> dict[str, Any]:
    """Return a file as the requests for a tree and for paths list it."""
    listed = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
    return listed | ({"lfs": lfs_pointer(file)} if file["lfs"] else {})


def list_tree(files: dict[str, Any], root: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Return the files and folders below `root`. Raise 404 if there is none."""
    prefix = root + "/" if root else ""
    listed: dict[str, dict[str, Any]] = {}
    for path, file in files.items():
        if not path.startswith(prefix):
            continue
        inner = path.removeprefix(prefix)
        for depth in range(inner.count("/")):
            folder = prefix + "/".join(inner.split("/")[: depth + 1])
            oid = hashlib.sha1(folder.encode()).hexdigest()
            listed[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
        listed[path] = list_file(path, file)
    if root and not listed:
        raise http_error(404, f"{root} does not exist", code="EntryNotFound")
    return [each for path, each in listed.items() if recursive or "/" not in path[len(prefix) :]]


def apply_changes(files: dict[str, Any], changes: list[Change]) -> dict[str, Any]:
    """Return the files after the operations of a commit.

    Raise 404 for a deletion of nothing, and 400 for a path below a file.
    """
    files = dict(files)
    for path, entry in changes:
        if entry is not None:
            files[path] = entry
            continue
        gone = [p for p in files if p == path or (path.endswith("/") and p.startswith(path))]
        if not gone:
            raise http_error(404, f"{path} does not exist", code="EntryNotFound")
        for each in gone:
            del files[each]
    for path in files:
        if any(str(parent) in files for parent in Path(path).parents):
            raise http_error(400, f"Invalid path {path!r}: a part of it is a file")
    return files
