"""Answers to requests that read: accounts, repositories, listings and files."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from pipelines.hub.local_hub.access import GIT, HUB, REPO
from pipelines.hub.local_hub.cards import card_metadata
from pipelines.hub.local_hub.objects import lfs_pointer, list_file, list_tree
from pipelines.hub.local_hub.parsing import http_error

routes = web.RouteTableDef()


@routes.get("/api/whoami-v2")
async def whoami(request: web.Request) -> web.Response:
    """Return the user of the token."""
    name, role = request.app[HUB].account(request)
    access = {"displayName": "local", "role": role}
    answer = {"type": "user", "name": name, "orgs": [], "auth": {"accessToken": access}}
    return web.json_response(answer)


@routes.get(REPO)
@routes.get(REPO + "/revision/{rev}")
async def info(request: web.Request) -> web.Response:
    """Return what is known of a repository at a revision."""
    hub = request.app[HUB]
    repo = hub.repo(request)
    commit = repo.commit(request.match_info.get("rev", "main"))
    with_sizes = bool(request.query.get("blobs"))
    answer = {
        "_id": commit["id"][:24],
        "id": repo.id,
        "sha": commit["id"],
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "lastModified": commit["date"],
        "createdAt": repo.commits[0]["date"],
        "siblings": [_sibling(path, file, with_sizes) for path, file in commit["files"].items()],
    }
    card = commit["files"].get("README.md")
    if card and not card["lfs"]:  # the metadata of others was not checked
        data = card_metadata(hub.blob_file(card["sha256"]).read_bytes())
        answer |= {"cardData": data, "tags": data.get("tags") or []}
        answer |= {key: data.get(key) for key in ("pipeline_tag", "library_name", "sdk")}
    text = json.dumps(answer, default=str)  # YAML has dates
    return web.Response(text=text, content_type="application/json")


def _sibling(path: str, file: dict[str, Any], with_sizes: bool) -> dict[str, Any]:
    """Return a file as the request for a repository lists it."""
    sibling: dict[str, Any] = {"rfilename": path}
    if with_sizes:
        sibling |= {"size": file["size"], "blobId": file["oid"]}
        if file["lfs"]:
            sibling["lfs"] = lfs_pointer(file)
    return sibling


@routes.get(REPO + "/tree/{rev}")
@routes.get(REPO + "/tree/{rev}/{path:.*}")
async def tree(request: web.Request) -> web.Response:
    """Return the files and folders below a path."""
    files = request.app[HUB].repo(request).commit(request.match_info["rev"])["files"]
    root = request.match_info.get("path", "").strip("/")
    recursive = request.query.get("recursive", "").lower() in ("true", "1")
    return web.json_response(list_tree(files, root, recursive=recursive))


@routes.post(REPO + "/paths-info/{rev}")
async def paths_info(request: web.Request) -> web.Response:
    """Return the files of a list that exist."""
    hub = request.app[HUB]
    files = hub.repo(request).commit(request.match_info["rev"])["files"]
    form = parse_qs((await hub.body(request)).decode(errors="replace"))
    paths = [path for path in form.get("paths", []) if path in files]
    return web.json_response([list_file(path, files[path]) for path in paths])


@routes.get(REPO + "/refs")
async def refs(request: web.Request) -> web.Response:
    """Return branches and tags."""
    repo = request.app[HUB].repo(request)

    def listed(refs: dict[str, str], folder: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit}
            for name, commit in refs.items()
        ]

    answer = {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags")}
    return web.json_response(answer | {"converts": [], "pullRequests": []})


@routes.get(REPO + "/commits/{rev}")
async def history(request: web.Request) -> web.Response:
    """Return the commits up to a revision, newest first."""
    repo = request.app[HUB].repo(request)
    last = repo.commits.index(repo.commit(request.match_info["rev"]))
    keys = ("id", "title", "message", "date", "authors")
    newest_first = reversed(repo.commits[: last + 1])
    return web.json_response([{key: commit[key] for key in keys} for commit in newest_first])


@routes.get(GIT + "/resolve/{rev}/{path:.*}")
async def resolve(request: web.Request) -> web.Response:
    """Redirect to another origin, so that a client must not send its token along."""
    hub = request.app[HUB]
    commit = hub.repo(request).commit(request.match_info["rev"])
    file = commit["files"].get(request.match_info["path"])
    headers = {"X-Repo-Commit": commit["id"]}
    if file is None:
        error = http_error(404, "Entry not found", code="EntryNotFound")
        error.headers.update(headers)
        raise error
    etag = f'"{file["sha256"] if file["lfs"] else file["oid"]}"'
    headers |= {"ETag": etag, "X-Linked-ETag": etag, "X-Linked-Size": str(file["size"])}
    signature = hub.signature("read", file["sha256"])
    location = f"http://localhost:{hub.port}/cdn/{file['sha256']}?signature={signature}"
    return web.Response(status=302, headers=headers | {"Location": location})


@routes.get("/cdn/{oid:[0-9a-f]{64}}")
async def cdn(request: web.Request) -> web.StreamResponse:
    """Send a content, or a range of it, to a signed request."""
    if "Authorization" in request.headers:
        raise http_error(400, "A token was sent to the CDN")
    hub = request.app[HUB]
    return web.FileResponse(hub.blob_file(hub.check_signature(request, "read")))
