"""The local Hub: what it refuses, what it survives, and that it holds no file in memory."""

import base64
import hashlib
import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import psutil
import pytest

from helpers.factories import ROOT
from pipelines.errors import RecipeError
from pipelines.hub.local_hub import LocalHub

COMMAND = [sys.executable, "-m", "pipelines", "hub"]


class Client:
    """Speaks HTTP to a Hub, well-formed or not."""

    def __init__(self, port: int, token: str | None):
        self.port, self.token = port, token

    def __call__(self, method: str, path: str, body=None, **headers):
        """Send a request; return status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        if isinstance(body, dict):
            body = json.dumps(body)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def create(self, name: str):
        return self("POST", "/api/repos/create", {"name": name, "type": "model"})

    def commit(self, repo: str, **files: bytes):
        return self("POST", f"/api/models/local/{repo}/commit/main", commit_of(files))

    def files(self, repo: str) -> dict[str, str]:
        """Return the git ids of the files of a repository."""
        status, _, body = self("GET", f"/api/models/local/{repo}/tree/main?recursive=true")
        assert status == 200
        return {item["path"]: item["oid"] for item in json.loads(body)}


def commit_of(files: dict[str, bytes]) -> str:
    lines = [{"key": "header", "value": {"summary": "a"}}]
    for path, content in files.items():
        value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        lines.append({"key": "file", "value": value})
    return "\n".join(map(json.dumps, lines))


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as found:
        client = Client(found.port, found.token)
        assert client.create("here")[0] == 200
        yield found


@pytest.fixture
def client(served):
    return Client(served.port, served.token)


def test_the_token_is_random_for_each_folder_and_readable_by_its_user_alone(served, tmp_path):
    file = served.folder / "token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == served.token
    for name in ("blobs", "repos", "uploads"):
        assert stat.S_IMODE((served.folder / name).stat().st_mode) == 0o700
    other = LocalHub(tmp_path)
    assert other.token != served.token
    other.lock.close()
    (tmp_path / "token").chmod(0o644)
    again = LocalHub(tmp_path)
    assert again.token == other.token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    again.lock.close()
    (tmp_path / "token").write_text("")
    assert LocalHub(tmp_path).token not in ("", other.token)


def test_a_folder_has_one_hub_at_a_time(served):
    with pytest.raises(RecipeError, match="another Hub serves"):
        LocalHub(served.folder)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "localhost", "127.0.0.1:1"]
)
def test_a_rebound_host_is_refused(served, client, host):
    status, headers, _ = client("GET", "/api/whoami-v2", Host=host.format(port=served.port))
    assert status == 403
    assert headers["X-Error-Message"].startswith("This Hub is http://127.0.0.1:")
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert client("GET", "/api/whoami-v2", Host=f"{name}:{served.port}")[0] == 200


BAD_OIDS = ["../../token", "/etc/passwd", "..", "", "token", "A" * 64, "0" * 63, "0" * 64 + "\n", 7]


@pytest.mark.parametrize("oid", BAD_OIDS)
def test_an_lfs_object_is_named_by_a_sha256_alone(served, client, oid):
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 3}]}
    status, headers, _ = client("POST", "/local/here.git/info/lfs/objects/batch", batch)
    assert status == 400
    assert "oid" in headers["X-Error-Message"]
    value = {"path": "x.bin", "oid": oid, "algo": "sha256", "size": 3}
    lines = [{"key": "header", "value": {"summary": "a"}}, {"key": "lfsFile", "value": value}]
    body = "\n".join(map(json.dumps, lines))
    assert client("POST", "/api/models/local/here/commit/main", body)[0] == 400
    assert "x.bin" not in client.files("here")
    for path in ("/cdn/..%2F..%2Ftoken", "/cdn/..%2Ftoken", f"/cdn/{served.folder}%2Ftoken"):
        assert client("GET", path)[0] == 404
    unsigned = f"/cdn/{'0' * 64}?signature={'0' * 64}"
    assert Client(served.port, None)("GET", unsigned)[0] == 403


@pytest.mark.parametrize(
    "name", ["../../evil", "..", ".", "a/b", "a--b", "a..b", "-a", "a.", "a.git", "ä", "", "a\n", 3]
)
def test_a_repository_has_a_name_that_the_hub_allows(served, client, name):
    before = sorted(served.folder.rglob("*.json"))
    status, headers, _ = client.create(name)
    assert status == 400
    assert "name" in headers["X-Error-Message"]
    assert sorted(served.folder.rglob("*.json")) == before


@pytest.mark.parametrize(
    "path",
    ["../x", "/x", "a/../x", "a//x", ".git/config", "a/.GIT/x", "a\0x", "a\\x", ".", "", "a\ud800"],
)
def test_a_file_has_a_path_inside_the_repository(client, path):
    before = client.files("here")
    assert client.commit("here", **{path: b"x"})[0] == 400
    assert client.files("here") == before


def test_a_path_is_a_file_or_a_folder(client):
    assert client.create("paths")[0] == 200
    assert client.commit("paths", **{"data/x": b"x", "data2": b"y"})[0] == 200
    assert client.commit("paths", data=b"z")[0] == 400
    assert client.commit("paths", **{"data2/x": b"z"})[0] == 400
    lines = [
        {"key": "header", "value": {}},
        {"key": "deletedFolder", "value": {"path": "data/"}},
    ]
    body = "\n".join(map(json.dumps, lines))
    assert client("POST", "/api/models/local/paths/commit/main", body)[0] == 200
    assert client.files("paths").keys() == {".gitattributes", "data2"}
    assert client("POST", "/api/models/local/paths/commit/main", body)[0] == 404


HEADER = json.dumps({"key": "header", "value": {"summary": "a"}})
COMMIT = "/api/models/local/here/commit/main"
MALFORMED = [
    ("POST", "/api/repos/create", "{"),
    ("POST", "/api/repos/create", "[1]"),
    ("POST", "/api/repos/create", "[" * 100_000),
    ("POST", "/api/repos/create", '{"name": "x", "type": ["model"]}'),
    ("POST", "/api/repos/create", '{"name": "x", "type": "evil"}'),
    ("POST", "/api/repos/create", b"\xff\xfe"),
    ("POST", "/api/repos/create", '{"name": ' + "9" * 5000 + "}"),
    ("DELETE", "/api/repos/delete", "{}"),
    ("PUT", "/api/models/local/here/settings", '{"visibility": 1}'),
    ("POST", "/api/validate-yaml", "{}"),
    ("POST", "/api/validate-yaml", json.dumps({"content": "---\n- a\n---\n"})),
    ("POST", "/api/validate-yaml", json.dumps({"content": "---\nmodel-index: [1]\n---\n"})),
    ("POST", "/api/validate-yaml", json.dumps({"content": "---\n" + "[" * 9000 + "\n---\n"})),
    ("POST", "/api/models/local/here/tag/main", "{}"),
    ("POST", "/api/models/local/here/tag/main", '{"tag": "../x"}'),
    ("POST", "/api/models/local/here/branch/x", '{"startingPoint": 1}'),
    ("POST", "/api/models/local/here/preupload/main", '{"files": {}}'),
    ("POST", "/api/models/local/here/preupload/main", '{"files": [1]}'),
    (
        "POST",
        "/api/models/local/here/preupload/main",
        '{"files": [{"path": "a", "size": 1, "sample": "%%%"}]}',
    ),
    ("POST", "/local/here.git/info/lfs/objects/batch", '{"objects": [null]}'),
    ("POST", COMMIT, ""),
    ("POST", COMMIT, "{}"),
    ("POST", COMMIT, HEADER + "\n" + HEADER),
    ("POST", COMMIT, HEADER + '\n{"key": "file", "value": {"path": "a", "content": "%%"}}'),
    ("POST", COMMIT, HEADER + '\n{"key": "file", "value": {"path": 1, "content": ""}}'),
    ("POST", COMMIT, HEADER + '\n{"key": "rename", "value": {"path": "a"}}'),
    ("POST", COMMIT, HEADER + '\n{"key": "file", "value": null}'),
    ("POST", COMMIT, HEADER + "\nnot json"),
    ("POST", COMMIT, commit_of({"README.md": b"---\na: &a [1]\nb: *a\n---\n"})),
    ("POST", COMMIT, commit_of({"README.md": b"\xff"})),
    ("POST", COMMIT, '{"key": "header", "value": {"parentCommit": 1}}'),
]


@pytest.mark.parametrize(("method", "path", "body"), MALFORMED)
def test_a_malformed_body_is_400_with_a_message(client, method, path, body):
    if isinstance(body, str):
        body = body.encode()
    status, headers, text = client(method, path, body)
    assert status == 400
    assert headers["X-Error-Message"] or b"message" in text


def test_a_malformed_length_or_an_unknown_route_has_its_status(served, client):
    for length in ("-1", "x", "1e3"):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        connection.putrequest("POST", "/api/repos/create")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status == 400
        connection.close()
    for path in ("/", "/api", "/api/models/local/here/nothing", "/api/robots/local/here"):
        status, headers, _ = client("GET", path)
        assert status == 404
        assert headers["X-Error-Message"]


def test_a_card_with_dates_and_other_types_is_read_back(client):
    assert client.create("card")[0] == 200
    card = b"---\nday: 2024-01-01\ntags: [a]\nx: .nan\n---\nText\n"
    assert client.commit("card", **{"README.md": card})[0] == 200
    status, _, body = client("GET", "/api/models/local/card")
    assert status == 200
    assert json.loads(body)["cardData"]["day"] == "2024-01-01"


def start(folder) -> tuple[subprocess.Popen, Client]:
    """Start a Hub in a process of its own."""
    process = subprocess.Popen(
        [*COMMAND, "--folder", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    process.stdout.readline()
    exports = dict(pair.split("=") for pair in process.stdout.readline().split()[1:])
    port = int(exports["HF_ENDPOINT"].rpartition(":")[2])
    return process, Client(port, exports["HF_TOKEN"])


def test_a_hub_that_is_killed_has_every_commit_that_it_confirmed(tmp_path):
    confirmed: dict[str, bytes] = {}
    for kill in range(10):
        process, client = start(tmp_path)
        if kill == 0:
            assert client.create("killed")[0] == 200
        files = client.files("killed")
        for name, content in confirmed.items():
            assert files[name] == git_id(content)
        assert not list((tmp_path / "uploads").iterdir())  # what the kill before had cut short
        timer = threading.Timer(0.02 + 0.013 * kill, process.send_signal, [signal.SIGKILL])
        timer.start()
        try:
            for number in range(1000):
                name, content = f"{kill}-{number}", os.urandom(200_000)
                if client.commit("killed", **{name: content})[0] == 200:
                    confirmed[name] = content
        except (OSError, http.client.HTTPException):
            pass
        assert process.wait(10) == -signal.SIGKILL
    assert len(confirmed) >= 10
    process, client = start(tmp_path)
    assert confirmed.keys() <= client.files("killed").keys()
    process.terminate()
    assert process.wait(10) == 0


def test_a_port_or_a_folder_that_is_taken_is_reported(served):
    for flags in (["--port", str(served.port)], ["--folder", str(served.folder)], ["--port", "-1"]):
        flags = flags if "--folder" in flags else [*flags, "--folder", str(served.folder / "new")]
        done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert done.stderr.startswith(flags[0])
        assert flags[1] in done.stderr
        assert len(done.stderr.splitlines()) == 1


def send_large(client: Client, size: int, process: psutil.Process) -> int:
    """Upload and download a file; return by how many bytes the server's memory grew at most."""
    assert client.create("large")[0] == 200
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    for _ in range(size):
        digest.update(block)
    oid, before, peak = digest.hexdigest(), process.memory_info().rss, 0
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": size << 20}]}
    _, _, body = client("POST", "/local/large.git/info/lfs/objects/batch", batch)
    href = json.loads(body)["objects"][0]["actions"]["upload"]["href"]

    def blocks():
        nonlocal peak
        for _ in range(size):
            yield block
            peak = max(peak, process.memory_info().rss)

    path = href[href.index("/lfs/") :]
    anonymous = Client(client.port, None)
    assert anonymous("PUT", path, blocks(), **{"Content-Length": str(size << 20)})[0] == 200
    value = {"path": "x.bin", "oid": oid, "algo": "sha256", "size": size << 20}
    lines = [{"key": "header", "value": {"summary": "a"}}, {"key": "lfsFile", "value": value}]
    commit = "\n".join(map(json.dumps, lines))
    assert client("POST", "/api/models/local/large/commit/main", commit)[0] == 200
    _, headers, _ = client("GET", "/local/large/resolve/main/x.bin")
    path = headers["Location"].partition(f":{client.port}")[2]
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.request("GET", path, headers={"Range": f"bytes={1 << 20}-"})
    answer, again = connection.getresponse(), hashlib.sha256(block)
    assert answer.status == 206
    while chunk := answer.read(1 << 20):
        again.update(chunk)
        peak = max(peak, process.memory_info().rss)
    connection.close()
    assert again.hexdigest() == oid
    return peak - before


@pytest.mark.parametrize("size", [64, pytest.param(400, marks=pytest.mark.slow)])
def test_a_large_file_is_never_in_memory(tmp_path, size):
    process, client = start(tmp_path)
    began = time.perf_counter()
    grown = send_large(client, size, psutil.Process(process.pid))
    seconds = time.perf_counter() - began
    process.terminate()
    process.wait(10)
    print(f"{size} MB up and down: {grown / 2**20:.1f} MB of memory, {seconds:.1f} s")
    assert grown < 32 << 20


def test_an_upload_that_is_wrong_or_cut_short_leaves_nothing(served, client):
    assert client.create("cut")[0] == 200
    oid = hashlib.sha256(b"right").hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 5}]}
    _, _, body = client("POST", "/local/cut.git/info/lfs/objects/batch", batch)
    href = json.loads(body)["objects"][0]["actions"]["upload"]["href"]
    path, anonymous = href[href.index("/lfs/") :], Client(served.port, None)
    assert anonymous("PUT", path, b"wrong")[0] == 400
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request("PUT", path, b"ri", {"Content-Length": "5"})
    time.sleep(0.2)
    connection.close()
    other = path.replace("signature=", "signature=0")
    assert anonymous("PUT", other, b"right")[0] == 403
    deadline = time.monotonic() + 5
    while list((served.folder / "uploads").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list((served.folder / "uploads").iterdir())
    assert not (served.folder / "blobs" / oid).exists()
    assert anonymous("PUT", path, b"right")[0] == 200
