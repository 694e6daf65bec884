"""Commit a result to a repository of the Hub, and verify the files there."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from pipelines.console import console
from pipelines.hub.contents import Contents, read_content
from pipelines.hub_client.client import Hub
from pipelines.results.files import FILES


def upload(api: HfApi, contents: Contents, repo: str) -> str:
    """Commit the files, and delete those of an earlier result; return the commit."""
    head = api.model_info(repo).sha
    stale = [
        path
        for path in list_files(api, repo, head)
        if path not in contents and any(fnmatch(path, pattern) for pattern in FILES)
    ]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, content) for name, content in sorted(contents.items())),
        *(CommitOperationDelete(path) for path in stale),
    ]
    try:
        commit = api.create_commit(
            repo, [*operations], commit_message="A result of gpt2-recipes", parent_commit=head
        )
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # huggingface_hub's, for a card that the Hub refuses
        raise RuntimeError(str(error)) from error
    return commit.oid


def list_files(
    api: HfApi, repo: str, revision: str | None, *, kind: Literal["model", "space"] = "model"
) -> dict[str, RepoFile]:
    """Return the files of a repository by their paths."""
    items = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type=kind)
    return {item.path: item for item in items if isinstance(item, RepoFile)}


def find_changed_files(contents: Contents, uploaded: dict[str, RepoFile]) -> list[str]:
    """Return the files that are missing in the repository, or have another hash there."""
    return [
        name
        for name, content in sorted(contents.items())
        if name not in uploaded or not is_same(content, uploaded[name])
    ]


def is_same(content: Path | bytes, file: RepoFile) -> bool:
    """Tell whether a file of the Hub has a content, by its hash: SHA-256 for LFS, else git's."""
    if file.lfs is None:
        data = read_content(content)
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == file.blob_id
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest() == file.lfs.sha256
    with content.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.lfs.sha256


def check_repository_unchanged(hub: Hub, repo: str, *, public: bool, gated: bool) -> str | None:
    """Return what somebody has changed in the repository since it was checked, or None.

    A repository that must be private and is now public is made private again.
    """
    try:
        info = hub.ask(lambda api: api.model_info(repo))
    except RepositoryNotFoundError:
        return f"{repo} was deleted, or hidden from this account, while it was published to"
    if info.id.lower() != repo.lower():
        return f"{repo} was renamed to {info.id} while it was published to"
    if bool(info.gated) and not gated:
        return f"{repo} was gated while it was published to: others have to ask for access"
    if public and info.private:
        return f"{repo} was made private while it was published to"
    if not public and not info.private:
        hub.ask(lambda api: api.update_repo_settings(repo, private=True))
        if not hub.ask(lambda api: api.model_info(repo)).private:
            return f"{repo} was made public while it was published to, and STILL IS PUBLIC"
        console().print(
            f"{repo} was made public while it was published to; it is private again. Whoever "
            "looked in between may have seen the result.",
            style="bold yellow",
            markup=False,
        )
    return None
