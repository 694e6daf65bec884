"""The files of a result on disk: their names, their manifest and how they replace older ones.

A result is complete when task.json is in its folder: it is written last and lists the size and
SHA-256 of every other file. A new result is written to its stage, a folder inside the run's folder,
and then replaces the old one file by file: the old task.json is removed first, the new one is moved
last. Imports no torch.
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
from pipelines.reporting.run_files import REPORT
from pipelines.results.sidecar import tuned_options

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
PREDICTIONS = "predictions.jsonl"  # stays on this machine: it has the texts of the rows
# Files that transformers or peft would load as well if they are next to a result.
LOADED = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
WITHOUT_EFFECT = (PREDICTIONS, "training_curve.png")  # on what a model predicts
NOT_LISTED = ("README.md", "task.json")  # `publish` writes the card; task.json holds the list
STAGE = ".result"  # folder inside the run's folder: a new result until it replaces the old one
PUBLISH_STAGE = ".publish-"  # prefix of the stages that earlier versions of `publish` made


def files_of(folder: Path) -> list[Path]:
    """Return the files in a folder that belong to a result, or would be loaded with one."""
    patterns = (*FILES, *LOADED, PREDICTIONS)
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


def size_and_hash(file: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file, after it has reached the disk."""
    with file.open("rb") as written:
        os.fsync(written.fileno())
    return {"size": file.stat().st_size, "sha256": sha256(file)}


def entries(
    folder: Path, *, without: tuple[str, ...], subfolders: bool = False
) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of each file in a folder, after it has reached the disk.

    Those of `subfolders` are listed by their path in the folder.
    """
    listed = {}
    for file in sorted(folder.rglob("*") if subfolders else folder.iterdir()):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in without:
            listed[name] = size_and_hash(file)
    return listed


def write_whole(file: Path, value: Any) -> None:
    """Write JSON to a file atomically: a kill leaves the old content or the new one."""
    unfinished = file.with_name(f"{file.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as out:
        out.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        out.flush()
        os.fsync(out.fileno())
    unfinished.replace(file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
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


def is_list_of_files(value: Any, *, subfolders: bool = False) -> bool:
    """Tell whether a value read from JSON maps file names to sizes and hashes.

    With `subfolders` a name may be a path that stays inside of its folder.
    """
    return isinstance(value, dict) and all(
        (Path(name).name == name or (subfolders and stays_inside(name)))
        and isinstance(entry, dict)
        and type(entry.get("size")) is int
        and isinstance(entry.get("sha256"), str)
        for name, entry in value.items()
    )


def stays_inside(name: str) -> bool:
    """Tell whether a path is relative, and leads out of no folder."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name


def write_manifest(folder: Path, sidecar: dict[str, Any] | None = None) -> None:
    """Write task.json with the size and SHA-256 of every other file of a result.

    Files that a run left next to it, such as its report, are not the result's. The rest of its
    content is `sidecar`, or what task.json has already.
    """
    if sidecar is None:
        sidecar = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    listed = {file.name: size_and_hash(file) for file in files_of(folder)}
    write_whole(folder / "task.json", sidecar | {"files": listed})


def update_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Replace fields of task.json, but not its list of files, which may be damaged by now."""
    before = read_manifest(folder)
    if before | fields != before:
        write_whole(folder / "task.json", before | fields)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of task.json. Raise ValueError unless it is what a run writes."""
    try:
        value = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("task.json is damaged") from None
    if not isinstance(value, dict):
        raise ValueError("task.json is damaged")
    if not is_list_of_files(value.get("files")) or "recipe.json" not in value["files"]:
        raise ValueError("task.json does not list the files of the result")
    return value


def find_result_damage(folder: Path) -> list[str]:
    """Return how the files in a folder differ from those that task.json lists.

    predictions.jsonl may be missing: its texts may be private, and nothing loads it.
    """
    if not (folder / "task.json").is_file():
        return ["has no task.json: no finished run left a result there."]
    try:
        listed = read_manifest(folder)["files"]
    except ValueError as error:
        return [f"{error}."]
    damaged = [
        damage_of_file(folder / name, entry)
        for name, entry in listed.items()
        if name != PREDICTIONS or (folder / name).exists()
    ]
    extra = [
        f"{file.name} does not belong to the result"
        for file in files_of(folder)
        if file.name not in listed
    ]
    return [f"{text}." for text in (*damaged, *extra) if text is not None]


def read_result(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of task.json. Raise RecipeError, naming the files, for a damaged result.

    `name` is the result's name in messages, as the user typed it.
    """
    if problems := [Problem(name, text) for text in find_result_damage(folder)]:
        raise RecipeError(problems)
    return read_manifest(folder)


@contextmanager
def consistent_read(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the content of task.json, and check at the end that all was read from one result.

    Raise RecipeError for a damaged result, and for one that a run has replaced in the meantime:
    each result has a task.json of its own, which is removed first. `name` is as in `read_result`.
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
    """Tell whether task.json has changed or is gone."""
    try:
        return read_manifest(folder) != before
    except (OSError, ValueError):
        return True


def digest(sidecar: dict[str, Any]) -> str:
    """Return a hash of all that decides predictions.

    That is weights, recipe, tokenizer and labels, and what the run decided by its validation rows.
    """
    listed = sidecar["files"].items()
    used = {name: entry["sha256"] for name, entry in listed if name not in WITHOUT_EFFECT}
    tuned = tuned_options(sidecar)
    text = json.dumps([used, sidecar["labels"], *([tuned] if tuned else [])], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_stage(folder: Path) -> Path:
    """Make an empty stage, the folder to write a new result to; return it."""
    stage = folder / STAGE
    if stage.exists():
        shutil.rmtree(stage)
    stage.mkdir(parents=True)
    return stage


def install_staged_result(folder: Path) -> None:
    """Replace the result in a folder by the complete one in its stage.

    Called again after a kill at any instant, it ends with the same files.
    """
    stage = folder / STAGE
    listed = read_manifest(stage)["files"]
    (folder / "task.json").unlink(missing_ok=True)
    (folder / REPORT).unlink(missing_ok=True)  # is of the old result
    sync_folder(folder)
    for file in files_of(folder):
        if file.name not in listed or (stage / file.name).exists():
            file.unlink()
    for name in listed:
        if (stage / name).exists():
            (stage / name).replace(folder / name)
    sync_folder(folder)
    (stage / "task.json").replace(folder / "task.json")
    sync_folder(folder)
    shutil.rmtree(stage)


def recover_interrupted_swap(folder: Path) -> None:
    """Finish a replacement that a kill interrupted, or remove an unfinished stage.

    The caller has the folder locked.
    """
    if is_stage_whole(folder):
        install_staged_result(folder)
    elif (folder / STAGE).exists():
        shutil.rmtree(folder / STAGE)


def is_stage_whole(folder: Path) -> bool:
    """Tell whether a stage, with the files moved out of it already, is a whole result."""
    stage = folder / STAGE
    try:
        listed = read_manifest(stage)["files"]
    except (OSError, ValueError):
        return False
    return all(
        damage_of_file(stage / name if (stage / name).exists() else folder / name, entry) is None
        for name, entry in listed.items()
    )
