"""A stand-in for the Hugging Face Hub on this machine, for trying and testing only.

    gpt2-recipes hub

The real `huggingface_hub` client speaks to it when HF_ENDPOINT names it. It has public and private
repositories of one user, commits, branches, tags, regular and LFS files and ranges; no Xet, pull
requests or multipart uploads.

The folder holds contents in blobs/<sha256>, each repository in one JSON file, uploads that are
under way in uploads/, the user's random token, and a lock. A file gets its name only when it is
complete and on disk, so that a server that was killed starts again with all that it has confirmed.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

import yaml
from aiohttp import web

from pipelines.errors import Problem, RecipeError

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".h5", ".onnx", ".gguf", ".zip")
LFS_BYTES = 10 * 1024 * 1024
BODY_BYTES = 16 * 1024 * 1024  # of a JSON body, or a line of a commit: a regular file in base64
CARD_BYTES = 100 * 1024  # of a card's metadata
NAME = re.compile(r"(?!.*(?:--|\.\.|\.git$))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
OID = re.compile(r"[0-9a-f]{64}")
TOKEN = re.compile(r"hf_[A-Za-z0-9]{34}")
REPO = "/api/{kind:models|datasets|spaces}/{user}/{name}"
GIT = "/{prefix:(datasets/|spaces/)?}{user}/{name}"
NOTHING: Any = object()  # a default: the field is required


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
        raise refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

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


def refused(status: int, message: str, *, code: str = "", **payload: Any) -> web.HTTPException:
    """Return an error in the form of the Hub's own."""
    kinds: dict[int, type[web.HTTPError]]
    kinds = {400: web.HTTPBadRequest, 401: web.HTTPUnauthorized, 403: web.HTTPForbidden}
    kinds |= {404: web.HTTPNotFound, 409: web.HTTPConflict, 412: web.HTTPPreconditionFailed}
    kinds |= {507: web.HTTPInsufficientStorage}
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in message)[:1000]
    headers = {"X-Error-Message": shown} | ({"X-Error-Code": code} if code else {})
    text = json.dumps({"error": message} | payload)
    return kinds[status](text=text, headers=headers, content_type="application/json")


# what clients send


def parse(text: bytes) -> dict[str, Any]:
    """Return a JSON object. Raise 400 for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refused(400, f"The body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise refused(400, "The body is not a JSON object")
    return value


def get(body: Any, name: str, kind: type, default: Any = NOTHING) -> Any:
    """Return a field of a JSON object, or `default` for null. Raise 400 for another type."""
    value = body.get(name) if isinstance(body, dict) else None
    if value is None and default is not NOTHING:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise refused(400, f'"{name}" is missing or not of type {kind.__name__}')
    return value


def decode_base64(text: str) -> bytes:
    """Return the bytes of a base64 text. Raise 400 for another text."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise refused(400, f"Invalid base64: {error}") from None


def checked_path(path: str) -> str:
    """Return the path of a file in a repository, or the name of a branch or tag, if it is one."""
    parts = path.split("/")
    unsafe = any(p in ("", ".", "..") or p.casefold() == ".git" for p in parts)
    if unsafe or len(path) > 1024 or "\\" in path or not path.isprintable():
        raise refused(400, f"Invalid path {path!r}")
    return path


def checked_oid(oid: str) -> str:
    """Return an LFS id, which names a file of the server, if it is a SHA-256."""
    if not OID.fullmatch(oid):
        raise refused(400, f"Invalid LFS oid {oid!r}: it must be a SHA-256 in hexadecimal")
    return oid


# cards


class CardLoader(yaml.SafeLoader):
    """Reads YAML without aliases, which can grow by powers when written as JSON."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def card_metadata(content: bytes) -> dict[str, Any]:
    """Return the metadata of a README.md. Raise ValueError that says what is wrong with it."""
    match = re.match(r"---\n(.*?)\n---\s*(\n|$)", content.decode(), re.DOTALL)
    if not match:
        return {}
    if len(match[1]) > CARD_BYTES:
        raise ValueError(f"metadata is longer than {CARD_BYTES} bytes")
    try:
        data = yaml.load(match[1], CardLoader) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"YAML: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("metadata is not a mapping")
    return data


def items(value: Any, name: str) -> list[Any]:
    """Return an array, or [] if there is none. Raise ValueError for another type."""
    if value is not None and not isinstance(value, list):
        raise ValueError(f'"{name}" must be an array')
    return value or []


def card_errors(content: bytes) -> list[str]:
    """Return what the Hub would refuse in the metadata of a README.md."""
    try:
        data = card_metadata(content)
        errors = []
        for key in ("base_model", "datasets"):
            values = data.get(key)
            for value in [values] if isinstance(values, str) else items(values, key):
                if not isinstance(value, str) or not REPO_ID.fullmatch(value):
                    errors.append(f'"{key}" {value!r} is not a repository id')
        if not all(isinstance(tag, str) for tag in items(data.get("tags"), "tags")):
            errors.append('"tags" must be an array of strings')
        for entry in items(data.get("model-index"), "model-index"):
            for result in items(entry.get("results"), "results") or [{}]:
                dataset, task = result.get("dataset") or {}, result.get("task") or {}
                if not (task.get("type") and dataset.get("type") and dataset.get("name")):
                    errors.append('"model-index" needs task.type, dataset.type and dataset.name')
                for metric in items(result.get("metrics"), "metrics") or [{}]:
                    if "type" not in metric or "value" not in metric:
                        errors.append('"model-index" metrics need type and value')
    except (ValueError, AttributeError, TypeError) as error:  # of a value that is no mapping
        return [str(error)]
    return errors


class LocalHub:
    """The server. As a context manager it serves from a thread; `url` is its address."""

    def __init__(self, folder: Path, *, port: int = 0):
        """Open a folder; `tokens` maps each token to its user and role.

        Raise RecipeError if another Hub serves it, or it cannot be written.
        """
        self.folder, self.port = folder, port
        try:
            for name in ("blobs", "repos", "uploads"):
                (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            self.lock = (folder / ".lock").open("a")
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in (folder / "uploads").iterdir():
                left.unlink()
            self.token = self.own_token()
        except BlockingIOError:
            text = f"another Hub serves {folder}. Stop it, or give another folder."
            raise RecipeError([Problem("folder", text)]) from None
        except OSError as error:
            text = f"{folder} cannot be used: {error.strerror}."
            raise RecipeError([Problem("folder", text)]) from None
        self.tokens = {self.token: ("local", "write")}
        self.repos: dict[tuple[str, str], Repo] = {}
        for file in sorted((folder / "repos").glob("*.json")):
            try:
                repo = Repo(**json.loads(file.read_bytes()))
            except (ValueError, TypeError):
                text = f"{file} is damaged. Move it away to start without this repository."
                raise RecipeError([Problem("folder", text)]) from None
            self.repos[repo.kind, repo.id] = repo

    def own_token(self) -> str:
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

    # serving

    @property
    def url(self) -> str:
        """Address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> web.Application:
        """Return the application with its routes."""
        app = web.Application(middlewares=[self.guard])
        get, post = app.router.add_get, app.router.add_post
        put, delete = app.router.add_put, app.router.add_delete
        get("/api/whoami-v2", self.whoami)
        post("/api/repos/create", self.create)
        delete("/api/repos/delete", self.delete)
        post("/api/validate-yaml", self.validate_yaml)
        put(REPO + "/settings", self.settings)
        get(REPO, self.info)
        get(REPO + "/revision/{rev}", self.info)
        get(REPO + "/tree/{rev}", self.tree)
        get(REPO + "/tree/{rev}/{path:.*}", self.tree)
        post(REPO + "/paths-info/{rev}", self.paths_info)
        get(REPO + "/refs", self.refs)
        get(REPO + "/commits/{rev}", self.history)
        post(REPO + "/{what:branch|tag}/{ref}", self.make_ref)
        delete(REPO + "/{what:branch|tag}/{ref}", self.drop_ref)
        post(REPO + "/preupload/{rev}", self.preupload)
        post(REPO + "/commit/{rev}", self.commit)
        post(GIT + ".git/info/lfs/objects/batch", self.lfs_batch)
        put("/lfs/{oid:[0-9a-f]{64}}", self.lfs_put)
        get("/cdn/{oid:[0-9a-f]{64}}", self.cdn)
        get(GIT + "/resolve/{rev}/{path:.*}", self.resolve)
        return app

    async def start(self) -> None:
        """Begin to serve. Raise RecipeError for a port that cannot be had."""
        self.runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1)
        await self.runner.setup()
        try:
            await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        except (OSError, OverflowError) as error:
            await self.close()
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            why = "is taken" if taken else f"cannot be used ({error})"
            text = f"{self.port} {why}. Give another, or 0 for a free one."
            raise RecipeError([Problem("port", text)]) from None
        self.port = self.runner.addresses[0][1]

    async def close(self) -> None:
        """Stop serving, and leave the folder to others."""
        await self.runner.cleanup()
        self.lock.close()

    def __enter__(self) -> LocalHub:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.start())
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.run_until_complete(self.close())
        self.loop.close()

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Refuse a page of a browser whose host was rebound to this machine; complete errors."""
        names = ("127.0.0.1", "localhost", "[::1]")
        try:
            if request.host not in {f"{n}:{self.port}" for n in names}:
                raise refused(403, f"This Hub is {self.url}, not {request.host}")
            return await handler(request)
        except web.HTTPException as error:  # also aiohttp's own, for unknown routes
            error.headers.setdefault("X-Error-Message", error.reason)
            raise
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise refused(507, f"The Hub's folder cannot be used: {error.strerror}") from None

    # reading requests

    async def chunks(self, request: web.Request) -> AsyncIterator[bytes]:
        """Yield the body of a request as it comes; the one place that reads it."""
        async for chunk in request.content.iter_chunked(1 << 18):
            yield chunk

    async def lines(self, request: web.Request) -> AsyncIterator[bytes]:
        """Yield the lines of a body. Raise 400 for one that is too long."""
        rest = bytearray()
        async for chunk in self.chunks(request):
            *complete, last = chunk.split(b"\n")
            for part in complete:
                yield bytes(rest + part)
                rest.clear()
            rest += last
            if len(rest) > BODY_BYTES:
                raise refused(400, f"A line, or the body, is longer than {BODY_BYTES} bytes")
        yield bytes(rest)

    async def body(self, request: web.Request) -> bytes:
        """Return a small body. Raise 400 for one that is too long."""
        found = bytearray()
        async for chunk in self.chunks(request):
            found += chunk
            if len(found) > BODY_BYTES:
                raise refused(400, f"The body is longer than {BODY_BYTES} bytes")
        return bytes(found)

    async def json(self, request: web.Request) -> dict[str, Any]:
        """Return the JSON object of a body."""
        return parse(await self.body(request))

    def user(self, request: web.Request) -> tuple[str, str] | None:
        """Return user and role of the request's token, or None without one."""
        header = request.headers.get("Authorization")
        if header is None:
            return None
        account = self.tokens.get(header.removeprefix("Bearer "))
        if account is None:
            raise refused(401, "Invalid credentials in Authorization header")
        return account

    def account(self, request: web.Request) -> tuple[str, str]:
        """Return user and role of the request's token. Raise 401 without one."""
        account = self.user(request)
        if account is None:
            raise refused(401, "Invalid username or password.")
        return account

    def repo(self, request: web.Request, *, write: bool = False) -> Repo:
        """Return the repository of the path, if the user may read, or write, it."""
        prefix = request.match_info.get("prefix", "").rstrip("/")
        kind = request.match_info.get("kind") or prefix or "models"
        user = self.user(request)
        identity = "{user}/{name}".format(**request.match_info)
        repo = self.repos.get((kind, identity))
        mine = user is not None and identity.split("/")[0] == user[0]
        if repo is None or (repo.private and not mine):
            raise refused(404 if user else 401, "Repository not found", code="RepoNotFound")
        if write and not (mine and user and user[1] == "write"):
            raise refused(403 if user else 401, f"You have no write access to {identity}")
        return repo

    def signature(self, action: str, oid: str) -> str:
        """Return what lets a request without a token read or write one LFS object."""
        return hmac.digest(self.token.encode(), f"{action} {oid}".encode(), "sha256").hex()

    def check_signature(self, request: web.Request, action: str) -> str:
        """Return the object that a signed request names. Raise 403 if it is not signed."""
        oid, given = request.match_info["oid"], request.query.get("signature", "")
        if not hmac.compare_digest(given.encode(), self.signature(action, oid).encode()):
            raise refused(403, "Not signed")
        return oid

    # the folder

    @contextmanager
    def new_file(self, file: Path) -> Iterator[IO[bytes]]:
        """Open a file that gets its name when it is complete and on disk."""
        descriptor, name = tempfile.mkstemp(dir=self.folder / "uploads")
        try:
            with os.fdopen(descriptor, "wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            os.replace(name, file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def repo_file(self, repo: Repo) -> Path:
        """Return the file of a repository; no two have the same, as no name holds "--"."""
        return self.folder / "repos" / f"{repo.kind}-{repo.id.replace('/', '--')}.json"

    def store(self, repo: Repo, **changes: Any) -> None:
        """Change a repository: on disk first, then for everybody to see."""
        with self.new_file(self.repo_file(repo)) as out:
            out.write(json.dumps(vars(repo) | changes).encode())
        vars(repo).update(changes)
        self.repos[repo.kind, repo.id] = repo

    def blob(self, content: bytes, *, lfs: bool) -> dict[str, Any]:
        """Store a content; return the entry of a commit for it."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not (self.folder / "blobs" / sha256).exists():
            with self.new_file(self.folder / "blobs" / sha256) as out:
                out.write(content)
        return self.entry_of(sha256, len(content)) if lfs else git_entry(content, sha256)

    def entry_of(self, sha256: str, size: int) -> dict[str, Any]:
        """Return the entry of a commit for an LFS object, whose git object is a pointer."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return git_entry(pointer.encode(), sha256) | {"size": size, "lfs": True}

    # the account and its repositories

    async def whoami(self, request: web.Request) -> web.Response:
        name, role = self.account(request)
        access = {"displayName": "local", "role": role}
        answer = {"type": "user", "name": name, "orgs": [], "auth": {"accessToken": access}}
        return web.json_response(answer)

    async def named(self, request: web.Request, body: dict[str, Any]) -> tuple[str, str, str]:
        """Return user, kind and id of the repository that a body names and the user may change."""
        user, role = self.account(request)
        owner, name = get(body, "organization", str, user), get(body, "name", str)
        if owner != user or role != "write":
            raise refused(403, f"You have no right to repositories of {owner}")
        kind = KINDS.get(get(body, "type", str, "model"))
        if kind is None:
            raise refused(400, f"Invalid type {body['type']!r}; allowed: {', '.join(KINDS)}")
        if not NAME.fullmatch(name):
            raise refused(400, f"Invalid name {name!r}: use up to 96 letters, digits, - _ and .")
        return user, kind, f"{owner}/{name}"

    async def create(self, request: web.Request) -> web.Response:
        body = await self.json(request)
        user, kind, identity = await self.named(request, body)
        url = f"{self.url}/{'' if kind == 'models' else kind + '/'}{identity}"
        if (kind, identity) in self.repos:
            raise refused(409, "You already created this repo", url=url)
        visibility = get(body, "visibility", str, "public")
        private = visibility == "private" or get(body, "private", bool, False)
        repo = Repo(kind, identity, private)
        attributes = "".join(f"*{suffix} filter=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
        files = {".gitattributes": self.blob(attributes, lfs=False)}
        self.store(repo, **repo.with_commit("main", files, "initial commit", "", user))
        return web.json_response({"url": url, "name": identity})

    async def delete(self, request: web.Request) -> web.Response:
        _, kind, identity = await self.named(request, await self.json(request))
        repo = self.repos.get((kind, identity))
        if repo is None:
            raise refused(404, "Repository not found", code="RepoNotFound")
        self.repo_file(repo).unlink()
        del self.repos[kind, identity]
        return web.json_response({})

    async def settings(self, request: web.Request) -> web.Response:
        repo, body = self.repo(request, write=True), await self.json(request)
        visibility = get(body, "visibility", str, "private" if repo.private else "public")
        self.store(repo, private=visibility == "private")
        return web.json_response({})

    async def validate_yaml(self, request: web.Request) -> web.Response:
        content = get(await self.json(request), "content", str)
        errors = card_errors(content.encode(errors="replace"))
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        return web.json_response(answer, status=400 if errors else 200)

    # reading

    async def info(self, request: web.Request) -> web.Response:
        repo = self.repo(request)
        commit = repo.commit(request.match_info.get("rev", "main"))
        siblings: list[dict[str, Any]] = []
        for path, file in commit["files"].items():
            sibling: dict[str, Any] = {"rfilename": path}
            if request.query.get("blobs"):
                sibling |= {"size": file["size"], "blobId": file["oid"]}
                if file["lfs"]:
                    sibling["lfs"] = lfs_pointer(file)
            siblings.append(sibling)
        answer = {
            "_id": commit["id"][:24],
            "id": repo.id,
            "sha": commit["id"],
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "lastModified": commit["date"],
            "createdAt": repo.commits[0]["date"],
            "siblings": siblings,
        }
        card = commit["files"].get("README.md")
        if card and not card["lfs"]:  # the metadata of others was not checked
            data = card_metadata((self.folder / "blobs" / card["sha256"]).read_bytes())
            answer |= {"cardData": data, "tags": data.get("tags") or []}
            answer |= {key: data.get(key) for key in ("pipeline_tag", "library_name")}
        return web.Response(
            text=json.dumps(answer, default=str), content_type="application/json"
        )  # YAML has dates

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
            listed[path] = listing(path, file)
        if root and not listed:
            raise refused(404, f"{root} does not exist", code="EntryNotFound")
        if request.query.get("recursive", "").lower() not in ("true", "1"):
            listed = {path: item for path, item in listed.items() if "/" not in path[len(prefix) :]}
        return web.json_response(list(listed.values()))

    async def paths_info(self, request: web.Request) -> web.Response:
        files = self.repo(request).commit(request.match_info["rev"])["files"]
        form = parse_qs((await self.body(request)).decode(errors="replace"))
        return web.json_response(
            [listing(p, files[p]) for p in form.get("paths", []) if p in files]
        )

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

    async def resolve(self, request: web.Request) -> web.Response:
        """Redirect to another origin, so that a client must not send its token along."""
        commit = self.repo(request).commit(request.match_info["rev"])
        file = commit["files"].get(request.match_info["path"])
        headers = {"X-Repo-Commit": commit["id"]}
        if file is None:
            error = refused(404, "Entry not found", code="EntryNotFound")
            error.headers.update(headers)
            raise error
        etag = f'"{file["sha256"] if file["lfs"] else file["oid"]}"'
        headers |= {"ETag": etag, "X-Linked-ETag": etag, "X-Linked-Size": str(file["size"])}
        signature = self.signature("read", file["sha256"])
        there = f"http://localhost:{self.port}/cdn/{file['sha256']}?signature={signature}"
        return web.Response(status=302, headers=headers | {"Location": there})

    async def cdn(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            raise refused(400, "A token was sent to the CDN")
        return web.FileResponse(self.folder / "blobs" / self.check_signature(request, "read"))

    # writing

    async def make_ref(self, request: web.Request) -> web.Response:
        repo, body = self.repo(request, write=True), await self.json(request)
        branch, name = request.match_info["what"] == "branch", request.match_info["ref"]
        refs = repo.branches if branch else repo.tags
        # a tag's path names the commit, its body the tag; a branch's path names the branch
        new = checked_path(name if branch else get(body, "tag", str))
        if new in refs:
            raise refused(409, f"Reference {new} exists")
        commit = repo.commit(get(body, "startingPoint", str, "main") if branch else name)["id"]
        self.store(repo, **{"branches" if branch else "tags": refs | {new: commit}})
        return web.json_response({})

    async def drop_ref(self, request: web.Request) -> web.Response:
        repo = self.repo(request, write=True)
        branch, name = request.match_info["what"] == "branch", request.match_info["ref"]
        refs = repo.branches if branch else repo.tags
        if branch and name == "main":
            raise refused(403, "main cannot be deleted")
        if name not in refs:
            raise refused(404, f"Invalid rev id: {name}", code="RevisionNotFound")
        rest = {other: commit for other, commit in refs.items() if other != name}
        self.store(repo, **{"branches" if branch else "tags": rest})
        return web.json_response({})

    async def preupload(self, request: web.Request) -> web.Response:
        repo, body = self.repo(request, write=True), await self.json(request)
        there = repo.commit(request.match_info["rev"])["files"]
        answers = []
        for file in get(body, "files", list):
            path, size = checked_path(get(file, "path", str)), get(file, "size", int)
            sample = decode_base64(get(file, "sample", str, ""))
            lfs = path.endswith(LFS_SUFFIXES) or size > LFS_BYTES or b"\0" in sample
            answer: dict[str, Any] = {"path": path, "uploadMode": "lfs" if lfs else "regular"}
            answer["shouldIgnore"] = False
            if old := there.get(path):
                answer["oid"] = old["sha256"] if old["lfs"] else old["oid"]
            answers.append(answer)
        return web.json_response({"files": answers})

    async def lfs_batch(self, request: web.Request) -> web.Response:
        self.repo(request, write=True)
        objects = []
        for wanted in get(await self.json(request), "objects", list):
            oid = checked_oid(get(wanted, "oid", str))
            answer = {"oid": oid, "size": get(wanted, "size", int)}
            if not (self.folder / "blobs" / oid).exists():
                href = f"{self.url}/lfs/{oid}?signature={self.signature('write', oid)}"
                answer["actions"] = {"upload": {"href": href}}
            objects.append(answer)
        return web.json_response(
            {"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json"
        )

    async def lfs_put(self, request: web.Request) -> web.Response:
        oid, digest = self.check_signature(request, "write"), hashlib.sha256()
        with self.new_file(self.folder / "blobs" / oid) as out:
            async for chunk in self.chunks(request):
                digest.update(chunk)
                out.write(chunk)
            if digest.hexdigest() != oid:
                raise refused(400, "The content is not what was announced")
            out.flush()
            await asyncio.to_thread(os.fsync, out.fileno())  # seconds, in which others are served
        return web.Response()

    async def commit(self, request: web.Request) -> web.Response:
        """Store the files of a commit as they come; then commit, between no other two commits."""
        repo, branch = self.repo(request, write=True), request.match_info["rev"]
        if branch not in repo.branches:
            raise refused(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
        header: dict[str, Any] | None = None
        changes: list[tuple[str, dict[str, Any] | None]] = []  # None deletes
        async for line in self.lines(request):
            if not line.strip():
                continue
            operation = parse(line)
            key, value = get(operation, "key", str), get(operation, "value", dict)
            if key == "header" and header is None:
                header = value
            elif header is None or key == "header":
                raise refused(400, "A commit begins with its one header")
            else:
                changes.append(self.change(key, value))
        if header is None:
            raise refused(400, "A commit begins with its one header")
        parent = get(header, "parentCommit", str, None)
        if parent not in (None, repo.branches.get(branch)):
            raise refused(412, "A commit has happened since. Please refresh and try again.")
        title, text = get(header, "summary", str, ""), get(header, "description", str, "")
        files = with_changes(repo.commit(branch)["files"], changes)
        user, _ = self.account(request)
        self.store(repo, **repo.with_commit(branch, files, title, text, user))
        commit = repo.branches[branch]
        url = f"{self.url}/{repo.id}/commit/{commit}"
        return web.json_response({"success": True, "commitOid": commit, "commitUrl": url})

    def change(self, key: str, value: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
        """Return path and entry of one operation of a commit; a folder's path ends in a slash."""
        given = get(value, "path", str)
        path = checked_path(given.rstrip("/") if key == "deletedFolder" else given)
        match key:
            case "file":
                content = decode_base64(get(value, "content", str))
                if path == "README.md" and (errors := card_errors(content)):
                    raise refused(400, f"Invalid metadata in README.md: {errors[0]}")
                return path, self.blob(content, lfs=False)
            case "lfsFile":
                oid = checked_oid(get(value, "oid", str))
                blob = self.folder / "blobs" / oid
                if not blob.is_file():
                    raise refused(400, f"LFS object {oid} was not uploaded")
                return path, self.entry_of(oid, blob.stat().st_size)
            case "deletedFile":
                return path, None
            case "deletedFolder":
                return path + "/", None
        raise refused(400, f"Unknown operation {key}")


def git_entry(content: bytes, sha256: str) -> dict[str, Any]:
    """Return the entry of a commit for a regular file."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"sha256": sha256, "size": len(content), "oid": git, "lfs": False}


def lfs_pointer(file: dict[str, Any]) -> dict[str, Any]:
    """Return what listings say of an LFS object; with its two names of the hash."""
    sha256 = file["sha256"]
    return {"oid": sha256, "sha256": sha256, "size": file["size"], "pointerSize": 130}


def listing(path: str, file: dict[str, Any]) -> dict[str, Any]:
    """Return a file as tree and paths-info list it."""
    listed = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
    return listed | ({"lfs": lfs_pointer(file)} if file["lfs"] else {})


def with_changes(
    files: dict[str, Any], changes: list[tuple[str, dict[str, Any] | None]]
) -> dict[str, Any]:
    """Return the files after the operations of a commit. Raise 404 for a deletion of nothing."""
    files = dict(files)
    for path, entry in changes:
        if entry is not None:
            files[path] = entry
            continue
        gone = [p for p in files if p == path or (path.endswith("/") and p.startswith(path))]
        if not gone:
            raise refused(404, f"{path} does not exist", code="EntryNotFound")
        for each in gone:
            del files[each]
    for path in files:
        if any(str(parent) in files for parent in Path(path).parents):
            raise refused(400, f"Invalid path {path!r}: a part of it is a file")
    return files


def main(folder: Path, port: int) -> None:
    """Serve until SIGINT or SIGTERM; port 0 takes a free one."""

    async def serve() -> None:
        hub, stop = LocalHub(folder, port=port), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await hub.start()
        print(f"A Hub for trying, of the user 'local', with its repositories in {folder}. Use it:")
        exports = f"HF_ENDPOINT={hub.url} HF_TOKEN={hub.token} HF_HUB_DISABLE_XET=1"
        print(f"    export {exports}", flush=True)
        await stop.wait()
        await hub.close()

    asyncio.run(serve())
