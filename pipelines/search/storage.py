"""The file of a study: an SQLite database, or a journal for a disk that machines share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from pipelines.errors import Problem, RecipeError
from pipelines.search.locks import Lock
from pipelines.search.upstream import BaseJournalFileLock

Kind = Literal["sqlite", "journal"]
FILES: dict[Kind, str] = {"sqlite": "study.db", "journal": "study.journal"}
WAIT = 60  # seconds for another worker's write to the database


class JournalLock(BaseJournalFileLock):
    """A lock of the journal that a killed worker does not leave behind.

    Optuna's own locks are files, which others wait for until 30 seconds have passed.
    """

    def __init__(self, journal: Path):
        self.journal = journal
        self.lock = Lock(journal.with_name(f"{journal.name}.lock"))

    def acquire(self) -> bool:
        """Wait for the lock, and drop an entry that a killed worker wrote half of."""
        self.lock.__enter__()
        with self.journal.open("rb+") as content:
            end = content.seek(0, os.SEEK_END)
            tail = b""
            while end > len(tail) and b"\n" not in tail:
                content.seek(max(0, end - len(tail) - 4096))
                tail = content.read(end - content.tell())
            if whole := len(tail) - tail.rfind(b"\n") - 1:
                content.truncate(end - whole)
        return True

    def release(self) -> None:
        self.lock.release()


def open_storage(folder: Path, kind: Kind | None) -> BaseStorage:
    """Return the storage of a study in a folder, which is new if there is none.

    Raise RecipeError if the folder has a study in a file of the other kind.
    """
    present = [each for each, file in FILES.items() if (folder / file).exists()]
    if kind is None:
        kind = present[0] if present else "sqlite"
    elif present and kind not in present:
        text = f"{folder} has a study in {FILES[present[0]]}. Leave the flag out, or use another "
        raise RecipeError([Problem("storage", f"{text}--output-dir.")])
    file = (folder / FILES[kind]).resolve()
    if kind == "journal":
        return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalLock(file)))
    options = {"connect_args": {"timeout": WAIT}}
    return optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs=options)
