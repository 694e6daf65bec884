"""The files of a result on disk: which they are, whether they belong together, and the swap.

A result is complete when task.json is in its folder: it is written last and lists the size and
SHA-256 of every other file. A new result is written to a folder of its own inside the run's folder
and replaces the old one file by file, task.json first out and last in. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipelines.errors import Problem, RecipeError

FILES = (  # all that a repository may hold; nothing else is ever uploaded or downloaded
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model*.safetensors",
    "model.safetensors.index.json",
    "recipe.json",
    "special_tokens_map.json",
    "spiece.model",
    "task.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "training_curve.png",
    "vocab.json",
    "vocab.txt",
)
# What transformers or peft would load too, where it is next to a result.
LOADED = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
NOT_LISTED = ("README.md", "task.json")  # `publish` writes the card; task.json holds the list
STAGE = ".result"  # inside the run's folder: a new result, until it is swapped in
PUBLISH_STAGE = ".publish-"  # prefix of the stages that earlier versions of `publish` made


def files_of(folder: Path) -> list[Path]:
    """Return the files in a folder that belong to a result, or would be loaded with one."""
    patterns = (*FILES, *LOADED)
    return [
        file
        for file in sorted(folder.iterdir())
        if not file.is_dir()
        and file.name not in NOT_LISTED
        and any(fnmatch(file.name, each) for each in patterns)
    ]


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def entries(folder: Path, *, without: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of each file in a folder, after it has reached the disk."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in without:
            with file.open("rb") as written:
                os.fsync(written.fileno())
            found[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    return found


def write_whole(file: Path, value: Any) -> None:
    """Write JSON to a file so that a kill leaves the old content or the new one."""
    unfinished = file.with_name(f"{file.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as out:
        out.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        out.flush()
        os.fsync(out.fileno())
    os.replace(unfinished, file)
    sync(file.parent)


def sync(folder: Path) -> None:
    """Wait until the names in a folder have reached the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage_of_file(file: Path, recorded: dict[str, Any]) -> str | None:
    """Return how a file differs from its recorded size and SHA-256, or None."""
    if not file.is_file():
        return f"{file.name} is missing"
    if file.stat().st_size != recorded["size"]:
        return f"{file.name} has {file.stat().st_size} bytes, not {recorded['size']}"
    if sha256(file) != recorded["sha256"]:
        return f"{file.name} has changed since it was written"
    return None


def is_list_of_files(value: Any) -> bool:
    """Tell whether a value read from JSON maps names in one folder to sizes and hashes."""
    return isinstance(value, dict) and all(
        Path(name).name == name
        and isinstance(entry, dict)
        and type(entry.get("size")) is int
        and isinstance(entry.get("sha256"), str)
        for name, entry in value.items()
    )


def write_manifest(folder: Path, sidecar: dict[str, Any] | None = None) -> None:
    """Write task.json with the size and SHA-256 of every other file of a result.

    The rest of its content is `sidecar`, or what it holds already.
    """
    if sidecar is None:
        sidecar = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    listed = entries(folder, without=NOT_LISTED)
    write_whole(folder / "task.json", sidecar | {"files": listed})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of task.json. Raise ValueError where it is not what a run writes."""
    try:
        value = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("task.json is damaged") from None
    if not isinstance(value, dict):
        raise ValueError("task.json is damaged")
    if not is_list_of_files(value.get("files")) or "recipe.json" not in value["files"]:
        raise ValueError("task.json does not list the files of the result")
    return value


def damage(folder: Path) -> list[str]:
    """Return how the files in a folder differ from the result that task.json describes."""
    if not (folder / "task.json").is_file():
        return ["has no task.json: no finished run left a result there."]
    try:
        listed = read_manifest(folder)["files"]
    except ValueError as error:
        return [f"{error}."]
    found = [damage_of_file(folder / name, entry) for name, entry in listed.items()]
    extra = [
        f"{file.name} does not belong to the result"
        for file in files_of(folder)
        if file.name not in listed
    ]
    return [f"{text}." for text in (*found, *extra) if text is not None]


def read_result(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of task.json. Raise RecipeError, naming the files, for a damaged result.

    `name` is what the result is called in messages, as the user typed it.
    """
    if problems := [Problem(name, text) for text in damage(folder)]:
        raise RecipeError(problems)
    return read_manifest(folder)


@contextmanager
def unchanging(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the content of task.json of a whole result that is read inside.

    Raise RecipeError for a damaged result, and for one that a run replaced in the meantime: each
    result has a task.json of its own, which the swap removes first.
    """
    before = read_result(folder, name)
    text = "was replaced by another result while it was read. Run the command again."
    replaced = RecipeError([Problem(name, text)])
    try:
        yield before
    except Exception as error:
        if was_replaced(folder, before):
            raise replaced from error
        raise
    if was_replaced(folder, before):
        raise replaced


def was_replaced(folder: Path, before: dict[str, Any]) -> bool:
    """Tell whether task.json has another content, or is gone."""
    try:
        return read_manifest(folder) != before
    except (OSError, ValueError):
        return True


def digest(sidecar: dict[str, Any]) -> str:
    """Return a hash of what a result computes with: weights, recipe, tokenizer and labels."""
    used = {n: e["sha256"] for n, e in sidecar["files"].items() if n != "training_curve.png"}
    text = json.dumps([used, sidecar["labels"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def new_stage(folder: Path) -> Path:
    """Return an empty folder to write a new result to, inside the run's folder."""
    stage = folder / STAGE
    if stage.exists():
        shutil.rmtree(stage)
    stage.mkdir(parents=True)
    return stage


def swap_in(folder: Path) -> None:
    """Replace the result in a folder by the complete one in its stage.

    Killed at any instant and called again, it ends in the same files.
    """
    stage = folder / STAGE
    listed = read_manifest(stage)["files"]
    (folder / "task.json").unlink(missing_ok=True)
    sync(folder)
    for file in files_of(folder):
        if file.name not in listed or (stage / file.name).exists():
            file.unlink()
    for name in listed:
        if (stage / name).exists():
            os.replace(stage / name, folder / name)
    sync(folder)
    os.replace(stage / "task.json", folder / "task.json")
    sync(folder)
    shutil.rmtree(stage)


def settle(folder: Path) -> None:
    """Finish the swap that a kill interrupted, or remove a stage that was not finished.

    The caller holds the folder's lock.
    """
    if is_ready(folder):
        swap_in(folder)
    elif (folder / STAGE).exists():
        shutil.rmtree(folder / STAGE)


def is_ready(folder: Path) -> bool:
    """Tell whether a folder's stage, with what was moved out of it, is a whole result."""
    stage = folder / STAGE
    try:
        listed = read_manifest(stage)["files"]
    except (OSError, ValueError):
        return False
    return all(
        damage_of_file(stage / name if (stage / name).exists() else folder / name, entry) is None
        for name, entry in listed.items()
    )
