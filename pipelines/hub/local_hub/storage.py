"""Repositories on disk.

The folder holds contents in blobs/<sha256>, each repository in one JSON file, unfinished uploads in
uploads/, the user's random token, and a lock. A file gets its name only when it is complete and on
disk, so that a server that was killed starts again with all that it has confirmed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pipelines.errors import Problem, RecipeError
from pipelines.hub.local_hub.objects import git_entry, lfs_entry
from pipelines.hub.local_hub.parsing import http_error
from pipelines.log import TOKEN


@dataclass
class Repo:
    """A repository: its commits in order, and what branches and tags point to."""

    kind: str
    id: str
    private: bool
    commits: list[dict[str, Any]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> dict[str, Any]:
        """Return the commit of a branch, a tag or an id. Raise 404 if there is none."""
        commit_id = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit["id"] == commit_id:
                return commit
        raise http_error(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def with_commit(
        self, branch: str, files: dict[str, Any], title: str, message: str, user: str
    ) -> dict[str, Any]:
        """Return the fields that a new commit on a branch changes."""
        parent = self.branches.get(branch)
        content = json.dumps([self.id, parent, len(self.commits), files, title])
        commit = {
            "id": hashlib.sha1(content.encode()).hexdigest(),
            "title": title,
            "message": message,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "authors": [{"user": user}],
            "files": files,
        }
        branches = self.branches | {branch: commit["id"]}
        return {"commits": [*self.commits, commit], "branches": branches}


class Storage:
    """The folder of a Hub, which one server at a time has open."""

    def __init__(self, folder: Path):
        """Open a folder. Raise RecipeError if another Hub serves it, or it cannot be written."""
        self.folder = folder
        try:
            for name in ("blobs", "repos", "uploads"):
                (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            self.lock = (folder / ".lock").open("a")
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for unfinished in (folder / "uploads").iterdir():
                unfinished.unlink()
            self.token = self._read_or_make_token()
        except BlockingIOError:
            text = f"another Hub serves {folder}. Stop it, or give another folder."
            raise RecipeError([Problem("folder", text)]) from None
        except OSError as error:
            text = f"{folder} cannot be used: {error.strerror}."
            raise RecipeError([Problem("folder", text)]) from None
        self.repos: dict[tuple[str, str], Repo] = {
            (repo.kind, repo.id): repo
            for repo in map(_read_repo, sorted((folder / "repos").glob("*.json")))
        }

    def _read_or_make_token(self) -> str:
        """Return the token in the folder, made at the first start; its user alone can read it."""
        file = self.folder / "token"
        if file.exists():
            file.chmod(0o600)
            token = file.read_text(encoding="utf-8").strip()
            if TOKEN.fullmatch(token):
                return token
        token = "hf_" + secrets.token_hex(17)
        with self.new_file(file) as out:
            out.write(token.encode())
        return token

    @contextmanager
    def new_file(self, file: Path) -> Iterator[IO[bytes]]:
        """Open a file that gets its name when it is complete and on disk."""
        descriptor, name = tempfile.mkstemp(dir=self.folder / "uploads")
        unfinished = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            unfinished.replace(file)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def store(self, repo: Repo, **changes: Any) -> None:
        """Change a repository: on disk first, then for everybody to see."""
        with self.new_file(self._repo_file(repo)) as out:
            out.write(json.dumps(vars(repo) | changes).encode())
        vars(repo).update(changes)
        self.repos[repo.kind, repo.id] = repo

    def delete_repo(self, repo: Repo) -> None:
        """Delete a repository; its contents stay."""
        self._repo_file(repo).unlink()
        del self.repos[repo.kind, repo.id]

    def _repo_file(self, repo: Repo) -> Path:
        """Return the file of a repository; no two have the same, as no name holds "--"."""
        return self.folder / "repos" / f"{repo.kind}-{repo.id.replace('/', '--')}.json"

    def blob_file(self, sha256: str) -> Path:
        """Return the file that holds a content."""
        return self.folder / "blobs" / sha256

    def blob(self, content: bytes, *, lfs: bool) -> dict[str, Any]:
        """Store a content; return the entry of a commit for it."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.blob_file(sha256).exists():
            with self.new_file(self.blob_file(sha256)) as out:
                out.write(content)
        return lfs_entry(sha256, len(content)) if lfs else git_entry(content, sha256)


def _read_repo(file: Path) -> Repo:
    """Read a repository. Raise RecipeError for a damaged file."""
    try:
        return Repo(**json.loads(file.read_bytes()))
    except (ValueError, TypeError):
        text = f"{file} is damaged. Move it away to start without this repository."
        raise RecipeError([Problem("folder", text)]) from None
