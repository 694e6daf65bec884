"""A Hub on loopback that takes jobs: enough of it for the real `hf jobs` client.

The client ships local files in a bucket, whose content goes to a content-addressed store (Xet).
Nothing is kept but what the bucket would hold and the jobs.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "/api/buckets/me/jobs-artifacts"


class JobsServer(ThreadingHTTPServer):
    """The server. `jobs` are the bodies that were posted, `files` the paths in the bucket."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: list[dict] = []
        self.files: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers of the Hub and of its store; what they do not know is 404."""

    protocol_version = "HTTP/1.1"
    server: JobsServer

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = self.content(self.path.partition("?")[0], body)
        data = json.dumps(content).encode()
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer  # noqa: N815 - names of the base class

    def log_message(self, *values) -> None:
        pass

    def content(self, path: str, body: bytes):
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "me", "auth": {}}
        if path == BUCKET:
            bucket = {"id": "me/jobs-artifacts", "private": True, "size": 0, "totalFiles": 0}
            url = f"{self.server.url}/buckets/me/jobs-artifacts"
            return bucket | {"url": url, "createdAt": "2026-01-01T00:00:00.000Z"}
        if path.startswith(f"{BUCKET}/tree"):
            return []
        if path == f"{BUCKET}/xet-write-token":
            token = {"accessToken": "token", "exp": int(time.time()) + 3600}
            return token | {"casUrl": self.server.url}
        if path == f"{BUCKET}/batch":
            self.server.files += [json.loads(line)["path"] for line in body.splitlines()]
            return {}
        if path.startswith("/v1/xorbs/"):
            return {"was_inserted": True}
        if path == "/v1/shards":
            return {"result": 1}
        if path == "/api/jobs/me":
            self.server.jobs.append(json.loads(body))
            owner = {"id": "1", "name": "me", "type": "user"}
            status = {"stage": "RUNNING", "message": None}
            return self.server.jobs[-1] | {"id": "1", "owner": owner, "status": status}
        return None
