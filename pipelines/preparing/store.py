"""A folder of data on disk that is made once, by one process, for all that need the same."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from filelock import FileLock, Timeout

from pipelines.console import say
from pipelines.reporting.progress import RunProgress
from pipelines.results.disk import explain_disk_errors, free_space, megabytes
from pipelines.results.files import damage_of_file, entries, write_whole

FORMAT = 3
"""Increase it when what is stored changes for the same rows, tokenizer and options."""
LIBRARIES = ("gpt2-recipes", "tokenizers", "transformers")
"""Another version of one of these prepares its own data."""
MARKER = "complete.json"
HEAD_START = 0.5
"""Seconds that other ranks leave to the rank that shows progress; any of them may prepare."""
ADVICE = "Make room, or set HF_DATASETS_CACHE to a folder on another disk, and run it again."

Build = Callable[[Path], None]


@dataclass(frozen=True)
class Store:
    """The prepared data of this machine, below HF_DATASETS_CACHE."""

    progress: RunProgress = field(default_factory=RunProgress)
    always: bool = False
    """Whether small data are prepared, too."""
    used: dict[Path, bool] = field(default_factory=dict)
    """The folders that were used, and whether they were made for it."""

    @property
    def root(self) -> Path:
        """Return the folder of all prepared data; to delete it is safe when nothing runs."""
        return Path(datasets.config.HF_DATASETS_CACHE) / "gpt2-recipes"

    def path(self, kind: str, key: dict[str, Any]) -> Path:
        """Return where data are that follow from a JSON-like key alone."""
        versions = {name: version(name) for name in LIBRARIES}
        text = json.dumps([FORMAT, versions, key], sort_keys=True)
        return self.root / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def has(self, kind: str, key: dict[str, Any]) -> bool:
        """Tell whether data are there, whole or damaged."""
        return (self.path(kind, key) / MARKER).is_file()

    def folder(self, kind: str, key: dict[str, Any], build: Build, *, num_bytes: int) -> Path:
        """Return a folder that `build` has filled, in this process or another, ever.

        Every file in it is as it was written. One process builds and the others wait; if it ends
        before it is done, the next one builds. `num_bytes` is about what `build` writes. Raise
        CheckpointError for a disk that has no room for it, or cannot be written.
        """
        folder = self.path(kind, key)
        self.used[folder] = False
        if find_damage(folder) is None:
            return folder
        if PartialState().local_process_index and not folder.is_dir():
            time.sleep(HEAD_START)
        with explain_disk_errors(folder, num_bytes=num_bytes, advice=ADVICE):
            self.root.mkdir(parents=True, exist_ok=True)
            folder.with_suffix(".lock").touch()
        with self._locked(folder):
            if (damage := find_damage(folder)) is None:
                return folder
            if folder.is_dir():
                say(f"  {folder} is damaged, and prepared again: {damage}", style="yellow")
                shutil.rmtree(folder)
            stage = folder.with_suffix(".part")
            shutil.rmtree(stage, ignore_errors=True)
            with explain_disk_errors(folder, num_bytes=num_bytes, advice=ADVICE):
                if free_space(self.root) < num_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                stage.mkdir()
                try:
                    build(stage)
                    write_whole(stage / MARKER, entries(stage, without=()))
                    stage.rename(folder)
                    self.used[folder] = True
                finally:
                    shutil.rmtree(stage, ignore_errors=True)
        return folder

    def describe(self, seconds: float) -> Iterator[str]:
        """Yield lines on what was written or found, and where it is."""
        if not self.used:
            yield "  nothing is written: the rows are few, and each run tokenises them in memory"
            return
        written = [folder for folder, made in self.used.items() if made]
        for verb, folders in (("written", written), ("found", self.used.keys() - set(written))):
            if folders:
                size = sum(file.stat().st_size for each in folders for file in each.iterdir())
                yield f"  {megabytes(size)} {verb} in {seconds:,.1f} s"
        yield from (f"    {folder}" for folder in self.used)

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold the lock of a folder, which ends with its process."""
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            text = f"waiting for another process that prepares {folder}"
            with self.progress.phase("waiting", text):
                lock.acquire()
        try:
            yield
        finally:
            lock.release()


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a folder, or None if it is complete and whole."""
    try:
        files = json.loads((folder / MARKER).read_text())
        for name, written in files.items():
            if damage := damage_of_file(folder / name, written):
                return damage
    except OSError as error:
        return f"{MARKER}: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MARKER} is unreadable"
    return None
