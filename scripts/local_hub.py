"""A stand-in for the Hugging Face Hub on this machine, for trying and testing only.

    gpt2-recipes hub                        # or: python scripts/local_hub.py

The real `huggingface_hub` client speaks to it when HF_ENDPOINT names it. It keeps repositories
with their history below a folder: contents in blobs/<sha256>, each repository as one JSON file.
It has repositories (public, private), commits, branches, tags, regular and LFS files, ranges, and
faults that a test scripts: see `Fault`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from aiohttp import web

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".h5", ".onnx", ".gguf", ".zip")
LFS_BYTES = 10 * 1024 * 1024
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
REPO = "/api/{kind:models|datasets|spaces}/{user}/{name}"
GIT = "/{prefix:(datasets/|spaces/)?}{user}/{name}"


@dataclass
class Fault:
    """What happens to the next `times` requests that match, after `skip` of them.

    `action` is an HTTP status; "reset", the connection is closed before the request is carried
    out; or "cut", it is carried out and half of the answer arrives.
    """

    action: int | str
    method: str = ".*"
    path: str = ".*"
    times: int = 1
    skip: int = 0

    def takes(self, request: web.Request) -> bool:
        """Tell whether this request is one of them, and count it."""
        hit = re.fullmatch(self.method, request.method) and re.search(self.path, request.path)
        if not hit or self.times <= 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Seen:
    """A request that came in."""

    method: str
    path: str
    body: bytes


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
        """Return the commit of a branch, a tag or an id."""
        wanted = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit["id"] == wanted:
                return commit
        raise refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def add(self, branch: str, files: dict[str, Any], title: str, message: str, user: str) -> str:
        """Add a commit to a branch; return its id."""
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
        self.commits.append(commit)
        self.branches[branch] = commit["id"]
        return commit["id"]


def refused(status: int, code: str, message: str, **payload: Any) -> web.HTTPException:
    """Return an error as the Hub words it."""
    kinds = {400: web.HTTPBadRequest, 401: web.HTTPUnauthorized, 403: web.HTTPForbidden}
    kinds |= {404: web.HTTPNotFound, 409: web.HTTPConflict, 412: web.HTTPPreconditionFailed}
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return kinds[status](
        text=json.dumps({"error": message} | payload),
        headers=headers,
        content_type="application/json",
    )


def card_errors(text: str) -> list[str]:
    """Return what the Hub would refuse in the metadata of a README.md."""
    match = re.match(r"---\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if not match:
        return []
    try:
        data = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    errors = []
    for key in ("base_model", "datasets"):
        values = data.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            if not isinstance(value, str) or not REPO_ID.fullmatch(value):
                errors.append(f'"{key}" {value!r} is not a repository id')
    tags = data.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        errors.append('"tags" must be an array of strings')
    for entry in data.get("model-index") or []:
        for result in entry.get("results", [{}]):
            dataset, task = result.get("dataset") or {}, result.get("task") or {}
            if not (task.get("type") and dataset.get("type") and dataset.get("name")):
                errors.append('"model-index" needs task.type, dataset.type and dataset.name')
            for metric in result.get("metrics") or [{}]:
                if "type" not in metric or "value" not in metric:
                    errors.append('"model-index" metrics need type and value')
    return errors


class LocalHub:
    """The server. As a context manager it serves from a thread; `url` is where."""

    def __init__(self, folder: Path, *, port: int = 0, record: bool = False):
        """`tokens` maps each token to its user and role; with `record` requests are kept."""
        self.folder, self.port, self.record = folder, port, record
        self.tokens = {"hf_local_trial": ("local", "write")}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.signature = hashlib.sha1(str(folder).encode()).hexdigest()
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        for file in (folder / "repos").glob("*.json"):
            repo = Repo(**json.loads(file.read_text(encoding="utf-8")))
            self.repos[repo.kind, repo.id] = repo

    # serving

    @property
    def url(self) -> str:
        """Address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> web.Application:
        """Return the application with its routes."""
        app = web.Application(middlewares=[self.around], client_max_size=0)
        get, post = app.router.add_get, app.router.add_post
        get("/api/whoami-v2", self.whoami)
        post("/api/repos/create", self.create)
        app.router.add_delete("/api/repos/delete", self.delete)
        post("/api/validate-yaml", self.validate_yaml)
        app.router.add_put(REPO + "/settings", self.settings)
        get(REPO, self.info)
        get(REPO + "/revision/{rev}", self.info)
        get(REPO + "/tree/{rev}", self.tree)
        get(REPO + "/tree/{rev}/{path:.*}", self.tree)
        post(REPO + "/paths-info/{rev}", self.paths_info)
        get(REPO + "/refs", self.refs)
        get(REPO + "/commits/{rev}", self.history)
        for what in ("branch", "tag"):
            post(f"{REPO}/{{what:{what}}}/{{ref}}", self.make_ref)
            app.router.add_delete(f"{REPO}/{{what:{what}}}/{{ref}}", self.drop_ref)
        post(REPO + "/preupload/{rev}", self.preupload)
        post(REPO + "/commit/{rev}", self.commit)
        post(GIT + ".git/info/lfs/objects/batch", self.lfs_batch)
        app.router.add_put("/lfs/{oid}", self.lfs_put)
        get("/cdn/{oid}", self.cdn)
        get(GIT + "/resolve/{rev}/{path:.*}", self.resolve)
        return app

    async def serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        ready()
        await stop.wait()
        await runner.cleanup()

    def __enter__(self) -> LocalHub:
        ready = threading.Event()
        self.loop, self.stop = asyncio.new_event_loop(), asyncio.Event()
        served = self.serve(ready.set, self.stop)
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(served,))
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()

    @web.middleware
    async def around(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Record the request, and let the scripted faults happen."""
        if self.record:
            self.seen.append(Seen(request.method, request.path_qs, await request.read()))
        fault = next((fault for fault in self.faults if fault.takes(request)), None)
        if fault is None:
            return await handler(request)
        if isinstance(fault.action, int):
            headers = {"Retry-After": "0"} if fault.action == 429 else {}
            return web.json_response({"error": "scripted"}, status=fault.action, headers=headers)
        if fault.action == "cut":
            answer = await handler(request)
            body = answer.body if isinstance(answer, web.Response) else b""
            cut = web.StreamResponse(status=answer.status, headers=answer.headers)
            cut.content_length = max(len(body or b""), 2)
            await cut.prepare(request)
            await cut.write((body or b"")[: len(body or b"") // 2])
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    # who may do what

    def user(self, request: web.Request) -> tuple[str, str] | None:
        """Return user and role of the request's token, or None without one."""
        header = request.headers.get("Authorization")
        if header is None:
            return None
        found = self.tokens.get(header.removeprefix("Bearer "))
        if found is None:
            raise refused(401, "", "Invalid credentials in Authorization header")
        return found

    def repo(self, request: web.Request, *, write: bool = False) -> Repo:
        """Return the repository of the path, if the user may read, or write, it."""
        prefix = request.match_info.get("prefix", "").rstrip("/")
        kind = request.match_info.get("kind") or prefix or "models"
        user = self.user(request)
        identity = "{user}/{name}".format(**request.match_info)
        repo = self.repos.get((kind, identity))
        mine = user is not None and identity.split("/")[0] == user[0]
        if repo is None or (repo.private and not mine):
            raise refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and not (mine and user and user[1] == "write"):
            raise refused(403 if user else 401, "", f"You have no write access to {identity}")
        return repo

    def keep(self, repo: Repo) -> None:
        """Write a repository to the folder."""
        file = self.folder / "repos" / f"{repo.kind}-{repo.id.replace('/', '--')}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(vars(repo)), encoding="utf-8")
        self.repos[repo.kind, repo.id] = repo

    def blob(self, content: bytes, *, lfs: bool) -> dict[str, Any]:
        """Keep a content; return the entry of a commit for it."""
        sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / sha256).write_bytes(content)
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"sha256": sha256, "size": len(content), "oid": git, "lfs": lfs}

    # the account and its repositories

    async def whoami(self, request: web.Request) -> web.Response:
        user = self.user(request)
        if user is None:
            raise refused(401, "", "Invalid username or password.")
        access = {"displayName": "local", "role": user[1]}
        answer = {"type": "user", "name": user[0], "orgs": [], "auth": {"accessToken": access}}
        return web.json_response(answer)

    async def create(self, request: web.Request) -> web.Response:
        user, asked = self.user(request), await request.json()
        if user is None:
            raise refused(401, "", "Invalid username or password.")
        owner = asked.get("organization") or user[0]
        if owner != user[0] or user[1] != "write":
            raise refused(403, "", f"You have no right to create a repository of {owner}")
        kind, identity = KINDS[asked.get("type") or "model"], f"{owner}/{asked['name']}"
        url = f"{self.url}/{'' if kind == 'models' else kind + '/'}{identity}"
        if (kind, identity) in self.repos:
            raise refused(409, "", "You already created this repo", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = Repo(kind, identity, private)
        attributes = "".join(f"*{suffix} filter=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
        files = {".gitattributes": self.blob(attributes, lfs=False)}
        repo.add("main", files, "initial commit", "", user[0])
        self.keep(repo)
        return web.json_response({"url": url, "name": identity})

    async def delete(self, request: web.Request) -> web.Response:
        user, asked = self.user(request), await request.json()
        kind = KINDS[asked.get("type") or "model"]
        identity = f"{asked.get('organization') or (user or ('',))[0]}/{asked['name']}"
        if user is None or identity.split("/")[0] != user[0]:
            raise refused(403, "", "You have no right to delete this repository")
        if self.repos.pop((kind, identity), None) is None:
            raise refused(404, "RepoNotFound", "Repository not found")
        (self.folder / "repos" / f"{kind}-{identity.replace('/', '--')}.json").unlink()
        return web.json_response({})

    async def settings(self, request: web.Request) -> web.Response:
        repo, asked = self.repo(request, write=True), await request.json()
        repo.private = asked.get("visibility", "private" if repo.private else "") == "private"
        self.keep(repo)
        return web.json_response({})

    async def validate_yaml(self, request: web.Request) -> web.Response:
        errors = card_errors((await request.json())["content"])
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        return web.json_response(answer, status=400 if errors else 200)

    # reading

    def entry(self, path: str, file: dict[str, Any]) -> dict[str, Any]:
        """Return a file as tree and paths-info list it."""
        lfs = {"oid": file["sha256"], "size": file["size"], "pointerSize": 130}
        listed = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
        return listed | ({"lfs": lfs} if file["lfs"] else {})

    async def info(self, request: web.Request) -> web.Response:
        repo = self.repo(request)
        commit = repo.commit(request.match_info.get("rev", "main"))
        siblings: list[dict[str, Any]] = []
        for path, file in commit["files"].items():
            sibling: dict[str, Any] = {"rfilename": path}
            if request.query.get("blobs"):
                sibling |= {"size": file["size"], "blobId": file["oid"]}
                if file["lfs"]:
                    lfs = {"sha256": file["sha256"], "size": file["size"], "pointerSize": 130}
                    sibling["lfs"] = lfs
            siblings.append(sibling)
        card: dict[str, Any] = {}
        if "README.md" in commit["files"]:
            blob = self.folder / "blobs" / commit["files"]["README.md"]["sha256"]
            match = re.match(r"---\n(.*?)\n---", blob.read_text(encoding="utf-8"), re.DOTALL)
            card = yaml.safe_load(match[1]) if match else {}
        answer = {
            "_id": commit["id"][:24],
            "id": repo.id,
            "sha": commit["id"],
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "lastModified": commit["date"],
            "createdAt": repo.commits[0]["date"],
            "tags": card.get("tags") or [],
            "cardData": card,
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "siblings": siblings,
        }
        return web.json_response(answer)

    async def tree(self, request: web.Request) -> web.Response:
        files = self.repo(request).commit(request.match_info["rev"])["files"]
        root = request.match_info.get("path", "").strip("/")
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
            listed[path] = self.entry(path, file)
        if root and not listed:
            raise refused(404, "EntryNotFound", f"{root} does not exist")
        if request.query.get("recursive", "").lower() not in ("true", "1"):
            listed = {path: item for path, item in listed.items() if "/" not in path[len(prefix) :]}
        return web.json_response(list(listed.values()))

    async def paths_info(self, request: web.Request) -> web.Response:
        files = self.repo(request).commit(request.match_info["rev"])["files"]
        asked = (await request.post()).getall("paths", [])
        return web.json_response([self.entry(p, files[p]) for p in map(str, asked) if p in files])

    async def refs(self, request: web.Request) -> web.Response:
        repo = self.repo(request)

        def listed(refs: dict[str, str], where: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{where}/{name}", "targetCommit": commit}
                for name, commit in refs.items()
            ]

        answer = {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags")}
        return web.json_response(answer | {"converts": [], "pullRequests": []})

    async def history(self, request: web.Request) -> web.Response:
        repo = self.repo(request)
        last = repo.commits.index(repo.commit(request.match_info["rev"]))
        keys = ("id", "title", "message", "date", "authors")
        newest_first = reversed(repo.commits[: last + 1])
        return web.json_response([{key: commit[key] for key in keys} for commit in newest_first])

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        commit = self.repo(request).commit(request.match_info["rev"])
        file = commit["files"].get(request.match_info["path"])
        headers = {"X-Repo-Commit": commit["id"]}
        if file is None:
            error = refused(404, "EntryNotFound", "Entry not found")
            error.headers.update(headers)
            raise error
        etag = f'"{file["sha256"] if file["lfs"] else file["oid"]}"'
        headers |= {"ETag": etag, "X-Linked-ETag": etag, "X-Linked-Size": str(file["size"])}
        if file["lfs"]:  # on another origin, so that a client must not send its token along
            there = f"http://localhost:{self.port}/cdn/{file['sha256']}?signature={self.signature}"
            return web.Response(status=302, headers=headers | {"Location": there})
        content = (self.folder / "blobs" / file["sha256"]).read_bytes()
        return web.Response(body=content, headers=headers)

    async def cdn(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            raise refused(400, "", "A token was sent to the CDN")
        if request.query.get("signature") != self.signature:
            raise refused(403, "", "Not signed")
        content = (self.folder / "blobs" / Path(request.match_info["oid"]).name).read_bytes()
        if "Range" not in request.headers:
            return web.Response(body=content)
        start, stop, _ = request.http_range.indices(len(content))
        if start >= len(content):
            return web.Response(status=416)
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        return web.Response(status=206, body=content[start:stop], headers=headers)

    # writing

    async def make_ref(self, request: web.Request) -> web.Response:
        repo, asked = self.repo(request, write=True), await request.json()
        branch, name = request.match_info["what"] == "branch", request.match_info["ref"]
        refs = repo.branches if branch else repo.tags
        # a tag's path names the commit, its body the tag; a branch's path names the branch
        new = name if branch else asked["tag"]
        if new in refs:
            raise refused(409, "", f"Reference {new} exists")
        refs[new] = repo.commit(asked.get("startingPoint", "main") if branch else name)["id"]
        self.keep(repo)
        return web.json_response({})

    async def drop_ref(self, request: web.Request) -> web.Response:
        repo = self.repo(request, write=True)
        branch, name = request.match_info["what"] == "branch", request.match_info["ref"]
        if branch and name == "main":
            raise refused(403, "", "main cannot be deleted")
        if (repo.branches if branch else repo.tags).pop(name, None) is None:
            raise refused(404, "RevisionNotFound", f"Invalid rev id: {name}")
        self.keep(repo)
        return web.json_response({})

    async def preupload(self, request: web.Request) -> web.Response:
        repo, asked = self.repo(request, write=True), await request.json()
        there = repo.commit(request.match_info["rev"])["files"]
        answers = []
        for file in asked["files"]:
            sample = base64.b64decode(file.get("sample") or "")
            lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_BYTES or b"\0" in sample
            answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular"}
            answer["shouldIgnore"] = False
            if old := there.get(file["path"]):
                answer["oid"] = old["sha256"] if old["lfs"] else old["oid"]
            answers.append(answer)
        return web.json_response({"files": answers})

    async def lfs_batch(self, request: web.Request) -> web.Response:
        self.repo(request, write=True)
        objects = []
        for wanted in (await request.json())["objects"]:
            answer = dict(wanted)
            if not (self.folder / "blobs" / wanted["oid"]).exists():
                href = f"{self.url}/lfs/{quote(wanted['oid'])}?signature={self.signature}"
                answer["actions"] = {"upload": {"href": href}}
            objects.append(answer)
        return web.json_response(
            {"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json"
        )

    async def lfs_put(self, request: web.Request) -> web.Response:
        if request.query.get("signature") != self.signature:
            raise refused(403, "", "Not signed")
        content = await request.read()
        if hashlib.sha256(content).hexdigest() != request.match_info["oid"]:
            raise refused(400, "", "The content is not what was announced")
        self.blob(content, lfs=True)
        return web.Response()

    async def commit(self, request: web.Request) -> web.Response:
        repo, branch = self.repo(request, write=True), request.match_info["rev"]
        if branch not in repo.branches:
            raise refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        lines = [json.loads(line) for line in (await request.read()).splitlines() if line]
        files, header = dict(repo.commit(branch)["files"]), lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.branches[branch]):
            raise refused(412, "", "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if ".." in Path(path).parts or path.startswith("/"):
                raise refused(400, "", f"Invalid path {path}")
            match line["key"]:
                case "file":
                    content = base64.b64decode(value["content"])
                    if path == "README.md" and (errors := card_errors(content.decode())):
                        raise refused(400, "", f"Invalid metadata in README.md: {errors[0]}")
                    files[path] = self.blob(content, lfs=False)
                case "lfsFile":
                    blob = self.folder / "blobs" / value["oid"]
                    if not blob.exists():
                        raise refused(400, "", f"LFS object {value['oid']} was not uploaded")
                    files[path] = self.blob(blob.read_bytes(), lfs=True)
                case "deletedFile":
                    if files.pop(path, None) is None:
                        raise refused(404, "EntryNotFound", f"{path} does not exist")
                case "deletedFolder":
                    files = {p: f for p, f in files.items() if not p.startswith(path)}
                case other:
                    raise refused(400, "", f"Unknown operation {other}")
        user = self.user(request)
        assert user is not None
        title, text = header.get("summary", ""), header.get("description", "")
        commit = repo.add(branch, files, title, text, user[0])
        self.keep(repo)
        url = f"{self.url}/{repo.id}/commit/{commit}"
        return web.json_response({"success": True, "commitOid": commit, "commitUrl": url})


def main(folder: Path = Path("runs/hub"), port: int = 8643) -> None:
    """Serve a Hub on this machine, for trying and testing; port 0 takes a free one."""
    hub = LocalHub(folder, port=port)
    [(token, (user, _))] = hub.tokens.items()

    def ready() -> None:
        print(
            f"A Hub for trying, of the user {user!r}; its repositories lie in {folder}. Use it by"
        )
        print(f"    export HF_ENDPOINT={hub.url} HF_TOKEN={token} HF_HUB_DISABLE_XET=1", flush=True)

    asyncio.run(hub.serve(ready, asyncio.Event()))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
