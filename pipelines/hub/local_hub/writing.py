"""Answers to requests that write: repositories, branches, tags, uploads and commits."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from typing import Any

from aiohttp import web

from pipelines.hub.local_hub.access import GIT, HUB, REPO, Access
from pipelines.hub.local_hub.cards import SPACE_CHOICES, card_errors
from pipelines.hub.local_hub.objects import (
    LFS_SUFFIXES,
    Change,
    apply_changes,
    goes_to_lfs,
    lfs_entry,
)
from pipelines.hub.local_hub.parsing import (
    check_oid,
    check_path,
    decode_base64,
    get_field,
    http_error,
    parse_object,
)
from pipelines.hub.local_hub.storage import Repo

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
NAME = re.compile(r"(?!.*(?:--|\.\.|\.git$))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)

routes = web.RouteTableDef()


def _repo_of_body(
    hub: Access, request: web.Request, body: dict[str, Any]
) -> tuple[str, tuple[str, str]]:
    """Return the user, and kind and id of the repository that a body names.

    Raise 400 for a name that the Hub does not allow, and 403 for a user that may not change it.
    """
    user, role = hub.account(request)
    owner, name = get_field(body, "organization", str, user), get_field(body, "name", str)
    if owner != user or role != "write":
        raise http_error(403, f"You have no right to repositories of {owner}")
    kind = KINDS.get(get_field(body, "type", str, "model"))
    if kind is None:
        raise http_error(400, f"Invalid type {body['type']!r}; allowed: {', '.join(KINDS)}")
    if not NAME.fullmatch(name):
        raise http_error(400, f"Invalid name {name!r}: use up to 96 letters, digits, - _ and .")
    return user, (kind, f"{owner}/{name}")


@routes.post("/api/repos/create")
async def create(request: web.Request) -> web.Response:
    """Create a repository with a first commit."""
    hub = request.app[HUB]
    body = await hub.json(request)
    user, (kind, repo_id) = _repo_of_body(hub, request, body)
    url = f"{hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
    if (kind, repo_id) in hub.repos:
        raise http_error(409, "You already created this repo", url=url)
    if kind == "spaces" and (sdk := get_field(body, "sdk", str, None)) not in SPACE_CHOICES["sdk"]:
        raise http_error(400, f"Invalid sdk {sdk!r}: a Space has gradio, docker or static")
    visibility = get_field(body, "visibility", str, "public")
    private = visibility == "private" or get_field(body, "private", bool, False)
    repo = Repo(kind, repo_id, private)
    attributes = "".join(f"*{suffix} filter=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
    files = {".gitattributes": hub.blob(attributes, lfs=False)}
    hub.store(repo, **repo.with_commit("main", files, "initial commit", "", user))
    return web.json_response({"url": url, "name": repo_id})


@routes.delete("/api/repos/delete")
async def delete(request: web.Request) -> web.Response:
    """Delete a repository."""
    hub = request.app[HUB]
    _, key = _repo_of_body(hub, request, await hub.json(request))
    repo = hub.repos.get(key)
    if repo is None:
        raise http_error(404, "Repository not found", code="RepoNotFound")
    hub.delete_repo(repo)
    return web.json_response({})


@routes.put(REPO + "/settings")
async def settings(request: web.Request) -> web.Response:
    """Make a repository public or private."""
    hub = request.app[HUB]
    repo, body = hub.repo(request, write=True), await hub.json(request)
    visibility = get_field(body, "visibility", str, "private" if repo.private else "public")
    hub.store(repo, private=visibility == "private")
    return web.json_response({})


@routes.post("/api/validate-yaml")
async def validate_yaml(request: web.Request) -> web.Response:
    """Return what is wrong with the metadata of a card."""
    body = await request.app[HUB].json(request)
    content = get_field(body, "content", str).encode(errors="replace")
    errors = card_errors(content, KINDS.get(get_field(body, "repoType", str, "model"), "models"))
    answer = {"errors": [{"message": error} for error in errors], "warnings": []}
    return web.json_response(answer, status=400 if errors else 200)


@routes.post(REPO + "/{what:branch|tag}/{ref}")
async def make_ref(request: web.Request) -> web.Response:
    """Create a branch or a tag.

    A tag's path names the commit and its body the tag; a branch's path names the branch.
    """
    hub = request.app[HUB]
    repo, body = hub.repo(request, write=True), await hub.json(request)
    is_branch, name = request.match_info["what"] == "branch", request.match_info["ref"]
    refs = repo.branches if is_branch else repo.tags
    new = check_path(name if is_branch else get_field(body, "tag", str))
    if new in refs:
        raise http_error(409, f"Reference {new} exists")
    revision = get_field(body, "startingPoint", str, "main") if is_branch else name
    commit = repo.commit(revision)["id"]
    hub.store(repo, **{"branches" if is_branch else "tags": refs | {new: commit}})
    return web.json_response({})


@routes.delete(REPO + "/{what:branch|tag}/{ref}")
async def delete_ref(request: web.Request) -> web.Response:
    """Delete a branch or a tag."""
    hub = request.app[HUB]
    repo = hub.repo(request, write=True)
    is_branch, name = request.match_info["what"] == "branch", request.match_info["ref"]
    refs = repo.branches if is_branch else repo.tags
    if is_branch and name == "main":
        raise http_error(403, "main cannot be deleted")
    if name not in refs:
        raise http_error(404, f"Invalid rev id: {name}", code="RevisionNotFound")
    rest = {other: commit for other, commit in refs.items() if other != name}
    hub.store(repo, **{"branches" if is_branch else "tags": rest})
    return web.json_response({})


@routes.post(REPO + "/preupload/{rev}")
async def preupload(request: web.Request) -> web.Response:
    """Return how each of some files is to be uploaded, and what is there already."""
    hub = request.app[HUB]
    repo, body = hub.repo(request, write=True), await hub.json(request)
    files = repo.commit(request.match_info["rev"])["files"]
    answers = []
    for file in get_field(body, "files", list):
        path = check_path(get_field(file, "path", str))
        size = get_field(file, "size", int)
        sample = decode_base64(get_field(file, "sample", str, ""))
        mode = "lfs" if goes_to_lfs(path, size, sample) else "regular"
        answer: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if old := files.get(path):
            answer["oid"] = old["sha256"] if old["lfs"] else old["oid"]
        answers.append(answer)
    return web.json_response({"files": answers})


@routes.post(GIT + ".git/info/lfs/objects/batch")
async def lfs_batch(request: web.Request) -> web.Response:
    """Return where to upload each LFS object that is not there yet."""
    hub = request.app[HUB]
    hub.repo(request, write=True)
    objects: list[dict[str, Any]] = []
    for wanted in get_field(await hub.json(request), "objects", list):
        oid = check_oid(get_field(wanted, "oid", str))
        answer = {"oid": oid, "size": get_field(wanted, "size", int)}
        if not hub.blob_file(oid).exists():
            href = f"{hub.url}/lfs/{oid}?signature={hub.signature('write', oid)}"
            answer["actions"] = {"upload": {"href": href}}
        objects.append(answer)
    return web.json_response(
        {"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json"
    )


@routes.put("/lfs/{oid:[0-9a-f]{64}}")
async def lfs_put(request: web.Request) -> web.Response:
    """Store an LFS object as it comes. Raise 400 unless it has the announced hash."""
    hub = request.app[HUB]
    oid, digest = hub.check_signature(request, "write"), hashlib.sha256()
    with hub.new_file(hub.blob_file(oid)) as out:
        async for chunk in hub.chunks(request):
            digest.update(chunk)
            out.write(chunk)
        if digest.hexdigest() != oid:
            raise http_error(400, "The content is not what was announced")
        out.flush()
        await asyncio.to_thread(os.fsync, out.fileno())  # seconds, in which others are served
    return web.Response()


@routes.post(REPO + "/commit/{rev}")
async def commit(request: web.Request) -> web.Response:
    """Store the files of a commit as they come; then commit, between no other two commits."""
    hub = request.app[HUB]
    repo, branch = hub.repo(request, write=True), request.match_info["rev"]
    if branch not in repo.branches:
        raise http_error(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
    header, changes = await _read_commit(hub, request, repo.kind)
    parent = get_field(header, "parentCommit", str, None)
    if parent not in (None, repo.branches.get(branch)):
        raise http_error(412, "A commit has happened since. Please refresh and try again.")
    title = get_field(header, "summary", str, "")
    message = get_field(header, "description", str, "")
    files = apply_changes(repo.commit(branch)["files"], changes)
    user, _ = hub.account(request)
    hub.store(repo, **repo.with_commit(branch, files, title, message, user))
    commit_id = repo.branches[branch]
    url = f"{hub.url}/{repo.id}/commit/{commit_id}"
    return web.json_response({"success": True, "commitOid": commit_id, "commitUrl": url})


async def _read_commit(
    hub: Access, request: web.Request, kind: str
) -> tuple[dict[str, Any], list[Change]]:
    """Return the header of a commit and its changes, whose contents are stored as they come."""
    header: dict[str, Any] | None = None
    changes: list[Change] = []
    async for line in hub.lines(request):
        if not line.strip():
            continue
        operation = parse_object(line)
        key, value = get_field(operation, "key", str), get_field(operation, "value", dict)
        if key == "header" and header is None:
            header = value
        elif header is None or key == "header":
            raise http_error(400, "A commit begins with its one header")
        else:
            changes.append(_store_change(hub, kind, key, value))
    if header is None:
        raise http_error(400, "A commit begins with its one header")
    return header, changes


def _store_change(hub: Access, kind: str, key: str, value: dict[str, Any]) -> Change:
    """Store the content of one operation of a commit; return its path and entry."""
    given = get_field(value, "path", str)
    path = check_path(given.rstrip("/") if key == "deletedFolder" else given)
    match key:
        case "file":
            content = decode_base64(get_field(value, "content", str))
            if path == "README.md" and (errors := card_errors(content, kind)):
                raise http_error(400, f"Invalid metadata in README.md: {errors[0]}")
            return path, hub.blob(content, lfs=False)
        case "lfsFile":
            oid = check_oid(get_field(value, "oid", str))
            if not hub.blob_file(oid).is_file():
                raise http_error(400, f"LFS object {oid} was not uploaded")
            return path, lfs_entry(oid, hub.blob_file(oid).stat().st_size)
        case "deletedFile":
            return path, None
        case "deletedFolder":
            return path + "/", None
    raise http_error(400, f"Unknown operation {key}")
