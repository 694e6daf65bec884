"""Publishing and loading over a Hub that is silent, slow, wrong or changed by others."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpers.factories import ROOT, list_files_again
from helpers.hub_process import SECRET, environment
from helpers.hub_proxy import STALLS, Proxy
from pipelines.data.source import DatasetSource
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Scratch, Tokenizer, Train
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.text_classification import TextClassification

TIMEOUT = 2  # seconds; a command that waits for the Hub may take this and its imports
CLI = ("-m", "pipelines")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, helpdesk):
    """A folder to work in, with data at a path of two parts, as a Hub id has."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(helpdesk / "classify", folder / "data" / "mine")
    return folder


def run_here(recipe, folder):
    """Run a recipe in a folder."""
    from pipelines.flow import run

    with contextlib.chdir(folder):
        run(recipe)
    return (folder / recipe.folder).resolve()


@pytest.fixture(scope="module")
def base(folder, helpdesk):
    """The result of pretraining a small base, in its run's folder."""
    source = DatasetSource(path=str(helpdesk / "documents"), eval_split="test")
    recipe = Recipe(
        name="base",
        task=CausalLM(dataset=source, block_size=64),
        model=Scratch(
            n_layer=1, n_head=2, n_embd=32, n_positions=64, tokenizer=Tokenizer(vocab_size=300)
        ),
        train=Train(max_steps=2),
    )
    return run_here(recipe, folder)


@pytest.fixture(scope="module")
def adapter(folder, base):
    """The result of tuning that base, both named by paths that could be Hub ids."""
    recipe = Recipe(
        name="adapter",
        task=TextClassification(
            dataset=DatasetSource(path="data/mine", eval_split="test"),
            label_column="queue",
            max_length=64,
        ),
        model=Model(name_or_path="runs/base"),
        lora=Lora(r=2),
        train=Train(max_steps=2),
    )
    return run_here(recipe, folder)


@pytest.fixture(scope="module")
def proxy(hub):
    """A proxy in front of the Hub."""
    with Proxy(hub.url) as served:
        yield served


class Client:
    """A process that uses the Hub on demand, since importing costs seconds."""

    def __init__(self, hub, home, cwd):
        settings = {"GPT2_RECIPES_HUB_TIMEOUT": str(TIMEOUT)}
        self.home, self.cwd = home, cwd
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "helpers" / "hub_user.py"), "publish_lines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(hub, home) | settings,
            cwd=cwd,
        )
        self.answer(time.monotonic())

    def __call__(self, verb, *, token=SECRET, **arguments) -> SimpleNamespace:
        """Return exit code, message, seconds and what the terminal shows."""
        arguments = {n: v if isinstance(v, bool) else str(v) for n, v in arguments.items()}
        started = time.monotonic()
        self.process.stdin.write(json.dumps({"verb": verb, "token": token} | arguments) + "\n")
        self.process.stdin.flush()
        return self.answer(started)

    def answer(self, started: float) -> SimpleNamespace:
        """Return the next answer of the process, with the seconds since `started`."""
        shown = []
        for line in self.process.stdout:
            if line.startswith("{"):
                seconds = time.monotonic() - started
                shown = "".join(shown)
                return SimpleNamespace(**json.loads(line), seconds=seconds, shown=shown)
            shown.append(line)
        raise AssertionError("the process has ended")


@pytest.fixture(scope="module")
def client(proxy, folder):
    """One such process, in another folder than the runs'."""
    (folder / "elsewhere").mkdir()
    found = Client(proxy, folder / "home", folder / "elsewhere")
    yield found
    found.process.stdin.close()
    found.process.kill()
    found.process.wait(30)


@pytest.fixture(autouse=True)
def _follow_no_script(proxy):
    yield
    proxy.reset()


def front_of(hub, repo) -> str:
    """Return the card of a repository."""
    return text_of(hub, repo, "README.md")


def text_of(hub, repo, name) -> str:
    """Return a file of a repository as its readers get it."""
    file = hub.repos["models", repo].commit("main")["files"][name]
    return (hub.folder / "blobs" / file["sha256"]).read_text(encoding="utf-8")


# a Hub that never answers


@pytest.mark.parametrize("how", STALLS)
def test_a_hub_that_never_answers_ends_every_command(client, proxy, base, how):
    proxy.reset(lambda method, path: how)
    recipe = Recipe(
        name="x",
        task=TextClassification(dataset=DatasetSource(path="some/dataset")),
        model=Model(name_or_path="some/base"),
    )
    for code, done in (
        (6, client("publish", folder=base, repo="local/stalled")),
        (2, client("evaluate", repo="local/stalled")),
        (2, client("preflight", recipe=recipe.to_json(), repo="local/stalled")),
    ):
        assert done.code == code
        assert "has not answered for 2 s" in done.said or "moved less than" in done.said
        assert done.seconds < 2.5 * TIMEOUT
        if code == 6:
            assert f"gpt2-recipes publish {base} local/stalled" in done.said


@pytest.mark.parametrize("path", ["/preupload/", "/info/lfs/", "/lfs/", "/commit/", "/tree/"])
def test_a_hub_that_falls_silent_in_the_middle_ends_publishing(client, proxy, hub, base, path):
    proxy.reset(lambda method, url: "bytes now and then" if path in url else None)
    for blob in (hub.folder / "blobs").iterdir():
        blob.unlink()  # so that all is sent
    done = client("publish", folder=base, repo=f"local/middle{path.replace('/', '-')}x")
    assert done.code == 6
    assert done.seconds < 5 * TIMEOUT
    proxy.reset()
    assert client("publish", folder=base, repo=f"local/middle{path.replace('/', '-')}x").code == 0


def test_a_process_that_gave_up_on_a_download_ends_too(proxy, folder, base, client):
    assert client("publish", folder=base, repo="local/download").code == 0
    stall = "headers now and then"  # which no time-out of a socket ends
    proxy.reset(lambda method, path: stall if "/resolve/" in path else None)
    done = subprocess.run(
        [sys.executable, *CLI, "evaluate", "local/download"],
        capture_output=True,
        text=True,
        env=environment(proxy, folder / "home-fresh") | {"GPT2_RECIPES_HUB_TIMEOUT": "2"},
        cwd=folder,
        timeout=240,  # mostly imports
    )
    assert done.returncode == 2, done.stderr
    assert "local/download: cannot be downloaded" in done.stderr


def test_a_transfer_through_xet_that_stalls_ends(proxy, folder, base):
    """The Rust client's own time-outs do not end an answer of which a byte arrives now and then."""

    def script(method, path):
        address = {"casUrl": f"{proxy.url}/cas", "accessToken": "x", "exp": 2**32}
        if "/xet-write-token/" in path:
            return 200, {"Content-Type": "application/json"}, json.dumps(address).encode()
        return "bytes now and then" if path.startswith("/cas") else None

    proxy.reset(script)
    settings = environment(proxy, folder / "home-xet") | {"GPT2_RECIPES_HUB_TIMEOUT": "2"}
    del settings["HF_HUB_DISABLE_XET"]
    done = subprocess.run(
        [sys.executable, *CLI, "publish", base, "local/xet"],
        capture_output=True,
        text=True,
        env=settings,
        cwd=folder,
        timeout=240,  # mostly imports
    )
    assert done.returncode == 6, done.stderr
    assert f"gpt2-recipes publish {base} local/xet" in done.stderr
    assert any("/cas" in path for _, path in proxy.seen)


def test_a_slow_reader_of_a_good_answer_is_left_alone(proxy):
    from pipelines.hub_client.transport import HubClient

    body = bytes(300_000)
    proxy.reset(lambda method, path: (200, {}, body))
    with HubClient(0.5) as client, client.stream("GET", proxy.url) as response:
        read = b""
        for chunk in response.iter_bytes(100_000):
            time.sleep(0.6)  # as a training step between two rows of a stream
            read += chunk
    assert read == body


def test_a_download_that_another_process_makes_is_waited_for(tmp_path, monkeypatch):
    from pipelines.hub_client.client import Hub
    from pipelines.hub_client.transport import HubError

    monkeypatch.setenv("GPT2_RECIPES_HUB_TIMEOUT", "0.2")
    finished = []

    def wait_for_the_other(seconds, bytes_each):
        for _ in range(round(seconds / 0.1)):
            time.sleep(0.1)
            with (tmp_path / "x.incomplete").open("ab") as file:
                file.write(bytes(bytes_each))
        finished.append(bytes_each)

    Hub().fetch(lambda: wait_for_the_other(2.5, 70_000), into=tmp_path)
    assert finished == [70_000]
    with pytest.raises(HubError, match="has not answered"):
        Hub().fetch(lambda: wait_for_the_other(2.5, 1), into=tmp_path)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "inf", "nan"])
def test_a_timeout_that_is_not_a_positive_number_is_refused(monkeypatch, value):
    from pipelines.errors import RecipeError
    from pipelines.hub_client.client import Hub
    from pipelines.hub_client.transport import hub_timeout

    monkeypatch.delenv("GPT2_RECIPES_HUB_TIMEOUT", raising=False)
    assert hub_timeout() == 45  # so that a command ends within 120 s, its imports included
    monkeypatch.setenv("GPT2_RECIPES_HUB_TIMEOUT", value)
    with pytest.raises(RecipeError, match="not a positive number of seconds"):
        Hub()


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (503, {"Retry-After": "7"}, 7),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        (503, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}, 1e9),
        (503, {"Retry-After": "soon"}, None),
        (503, {}, None),
        (429, {"ratelimit": '"api";r=0;t=55'}, 55),
        (200, {"ratelimit": '"api";r=0;t=55'}, None),
    ],
)
def test_the_time_that_a_server_requests_is_read_in_every_form(status, headers, seconds):
    import httpx2

    from pipelines.hub_client.transport import retry_after

    found = retry_after(httpx2.Response(status, headers=headers))
    assert found == seconds or (seconds == 1e9 and found > seconds)


# a Hub that fails for a while


def failing_once(part, answer):
    """Return a script that fails the first request whose path has `part`."""
    left = [answer]
    return lambda method, path: left.pop() if left and part in path else None


@pytest.mark.parametrize("status", [408, 520, 524])
def test_a_passing_failure_is_retried_in_publishing_and_loading(client, proxy, base, status):
    repo = f"local/passing-{status}"
    for part in ("/whoami", "/commit/"):
        proxy.reset(failing_once(part, (status, {}, b"{}")))
        assert client("publish", folder=base, repo=repo).code == 0
    for part in (f"/api/models/{repo}", "/resolve/"):
        proxy.reset(failing_once(part, (status, {}, b"{}")))
        shutil.rmtree(client.home / "hub", ignore_errors=True)
        assert client("load", repo=repo).code == 0


@pytest.mark.parametrize("answer", [503, 520, "silent"])
def test_rows_of_the_hub_are_read_after_a_passing_failure_or_refused(
    client, proxy, helpdesk, answer
):
    file = helpdesk / "classify" / "train.jsonl"
    repo = f"local/rows-{answer}"
    assert client("share_rows", repo=repo, file=file).code == 0
    if answer != "silent":
        proxy.reset(failing_once("/api/datasets/", (answer, {}, b"{}")))
        done = client("read_rows", repo=repo)
        assert done.code == 0, done.said
        return
    proxy.reset(lambda method, path: answer)
    done = client("read_rows", repo=repo)
    assert done.code == 3
    assert f"{repo}: " in done.said
    assert "has not answered for 2 s" in done.said


def test_a_hub_that_requests_a_wait_gets_the_time(client, proxy, base):
    busy = (503, {"Retry-After": "4"}, b"{}")  # longer than the time-out of 2 s
    proxy.reset(failing_once("/commit/", busy))
    done = client("publish", folder=base, repo="local/busy")
    assert done.code == 0
    assert done.seconds > 4
    busy = (503, {"Retry-After": "3600"}, b"{}")
    proxy.reset(lambda method, path: busy if "/commit/" in path else None)
    (base / "README.md").write_text("x")  # publishing never takes it
    done = client("publish", folder=base, repo="local/busier")
    assert done.code == 6
    assert "asks to wait for 3,600 s" in done.said


# a Hub that is wrong, and its reasons


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        (
            "/commit/",
            (403, {"X-Error-Message": "Private storage limit reached"}, b""),
            "Private storage limit reached (HTTP 403)",
        ),
        (
            "/commit/",
            (400, {}, b'{"error": "Invalid metadata: license\\u001b[31m"}'),
            "Invalid metadata: license [31m (HTTP 400)",
        ),
        ("/commit/", (413, {}, b"<html>"), "HTTP 413"),
        ("/commit/", (200, {}, b"{}"), "does not answer as the Hub does: KeyError"),
        ("/commit/", (200, {}, b"[1, 2"), "the answer is not JSON"),
        ("/info/lfs/", (403, {}, b'{"message": "x", "error": "No rights"}'), "No rights"),
        ("/lfs/", (507, {}, b'{"error": "Disk full"}'), "Disk full"),
    ],
)
def test_the_reason_of_the_hub_is_reported(client, proxy, hub, base, path, answer, words):
    for blob in (hub.folder / "blobs").iterdir():
        blob.unlink()
    proxy.reset(lambda method, url: answer if path in url else None)
    done = client("publish", folder=base, repo=f"local/reason-{len(words)}")
    assert done.code == 6
    assert words in done.said
    assert "Request ID" not in done.said
    assert "gpt2-recipes publish" in done.said


def test_a_web_page_in_place_of_an_answer_is_recognised(client, proxy, base):
    page = (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Log in</html>")
    proxy.reset(lambda method, path: page)
    for verb, code in (("publish", 6), ("evaluate", 2)):
        arguments = {"folder": base} if verb == "publish" else {}
        done = client(verb, repo="local/portal", **arguments)
        assert done.code == code
        assert "with a web page" in done.said


@pytest.mark.parametrize(
    "answer", [(200, {}, b"{}"), (200, {}, b"null"), (200, {}, b'{"orgs": 3}'), (204, {}, b"")]
)
def test_a_malformed_answer_is_reported_without_a_traceback(client, proxy, base, answer):
    proxy.reset(lambda method, path: answer)
    assert client("publish", folder=base, repo="local/form").code == 6
    assert client("evaluate", repo="local/form").code == 2


def test_a_token_that_is_revoked_during_the_run_leaves_the_finishing_command(client, proxy, base):
    revoked = (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}")
    proxy.reset(lambda method, path: revoked)
    done = client("publish", folder=base, repo="local/revoked")
    assert done.code == 2  # the command was typed: nothing was computed
    done = client("publish_finished", folder=base, repo="local/revoked", public=False)
    assert done.code == 6
    assert "Invalid credentials" in done.said
    assert f"gpt2-recipes publish {base} local/revoked" in done.said


# a repository that others change while it is published to


def after_the_commit(change):
    """Return a script that makes a change when the commit has been made."""
    made = []

    def script(method, path):
        if "/commit/" in path:
            made.append(path)
        elif made and "/tree/" in path and len(made) == 1:
            made.append(path)
            change()

    return script


def test_a_repository_made_public_meanwhile_is_private_again(client, proxy, hub, base):
    def publicly():
        hub.repos["models", "local/opened"].private = False

    proxy.reset(after_the_commit(publicly))
    done = client("publish", folder=base, repo="local/opened", public=False)
    assert done.code == 0
    assert "was made public while it was published to; it is private again" in done.shown
    assert hub.repos["models", "local/opened"].private


def test_a_repository_that_stays_public_gated_renamed_or_deleted_is_reported(
    client, proxy, hub, base
):
    def change(**fields):
        info = {"id": "local/changed", "private": True, "gated": False, "sha": "0" * 40} | fields
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()

    gone = (404, {"X-Error-Code": "RepoNotFound"}, b"{}")
    for answer, words in (
        (change(private=False), "STILL IS PUBLIC"),
        (change(gated="auto"), "was gated"),
        (change(id="local/other"), "was renamed to local/other"),
        (gone, "was deleted, or hidden"),
    ):
        made = []

        def script(method, path, answer=answer, made=made):
            made += ["/commit/" in path]
            is_info = method == "GET" and path.split("?")[0] == "/api/models/local/changed"
            return answer if any(made) and is_info else None

        for repo in [key for key in hub.repos if key[1] == "local/changed"]:
            del hub.repos[repo]
        proxy.reset(script)
        done = client("publish", folder=base, repo="local/changed")
        assert done.code == 6
        assert words in done.said


# an adapter on a base of this machine, published from another folder


def test_an_adapter_on_a_local_base_is_published_with_it(client, hub, adapter, folder):
    done = client("publish", folder=adapter, repo="local/tuned", public=False)
    assert done.code == 2
    assert "is a folder of this machine" in done.said
    assert "--with-base USER/BASE" in done.said
    # the base is named relative to the folder of the run, as its recipe does
    options = {"folder": adapter, "repo": "local/tuned", "with_base": "local/its-base"}
    assert "in the folder where the run was started" in client("publish", **options).said
    done = client("publish", **options, cwd=folder)
    assert done.code == 0, done.said
    client("load", repo=adapter, cwd=folder / "elsewhere")
    commit = hub.repos["models", "local/its-base"].commit("main")["id"]
    config = json.loads(text_of(hub, "local/tuned", "adapter_config.json"))
    recipe = json.loads(text_of(hub, "local/tuned", "recipe.json"))
    sidecar = json.loads(text_of(hub, "local/tuned", "task.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("local/its-base", commit)
    assert recipe["model"] == {
        "type": "Model",
        "name_or_path": "local/its-base",
        "revision": commit,
        "tokenizer": None,
        "tokenizer_revision": None,
    }
    assert sidecar["base"]["name_or_path"] == "local/its-base"
    assert sidecar["base"]["revision"] == commit
    assert "base_model: local/its-base" in text_of(hub, "local/tuned", "README.md")
    here = json.loads((adapter / "adapter_config.json").read_text())
    assert here["base_model_name_or_path"] == "./runs/base"  # the result itself is unchanged
    shutil.rmtree(client.home / "hub", ignore_errors=True)
    assert client("load", repo="local/tuned").code == 0
    done = client("publish", folder=adapter, repo="local/again", base=f"local/its-base@{commit}")
    assert done.code == 0, done.said


def test_a_card_has_the_licence_of_the_base_on_the_hub(client, hub, adapter, base):
    assert client("publish", folder=base, repo="local/licensed").code == 0
    repo = hub.repos["models", "local/licensed"]
    assert "license: other" in text_of(hub, "local/licensed", "README.md")
    for front, expected in (
        ("license: mit", "mit"),
        ("license: [mit]", "other"),
        ("x: 1", "other"),
    ):
        card = hub.blob(f"---\n{front}\n---\n".encode(), lfs=False)
        files = repo.commit("main")["files"] | {"README.md": card}
        hub.store(repo, **repo.with_commit("main", files, "by hand", "", "local"))
        done = client("publish", folder=adapter, repo="local/like-base", base="local/licensed")
        assert done.code == 0, done.said
        assert f"license: {expected}\n" in text_of(hub, "local/like-base", "README.md")


def test_a_base_with_other_weights_is_refused_with_both_hashes(client, hub, adapter, base, folder):
    from pipelines.results.base_weights import weights_sha256

    other = shutil.copytree(base, folder / "other", dirs_exist_ok=True)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    list_files_again(other)
    assert client("publish", folder=other, repo="local/other-base").code == 0
    done = client("publish", folder=adapter, repo="local/wrong", base="local/other-base")
    assert done.code == 2
    assert weights_sha256(base) in done.said
    assert weights_sha256(other) in done.said
    assert ("models", "local/wrong") not in hub.repos
    for options, words in (
        ({"folder": base, "base": "local/other-base"}, "is a whole model"),
        ({"folder": adapter, "base": "local/nowhere"}, "is not on the Hub"),
        ({"folder": adapter, "base": "./runs/base"}, "is not on the Hub"),
        ({"folder": adapter, "base": "a/b", "with_base": "a/b"}, "excludes --base"),
    ):
        done = client("publish", repo="local/wrong", **options)
        assert (done.code, words in done.said) == (2, True), done.said


def test_the_hash_of_a_base_is_that_of_the_hub_or_of_its_shards(tmp_path):
    import hashlib

    from pipelines.results.base_weights import weights_sha256

    (tmp_path / "model.safetensors").write_bytes(b"a")
    assert weights_sha256(tmp_path) == hashlib.sha256(b"a").hexdigest()
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"b")
    (tmp_path / "training_args.safetensors").write_bytes(b"not a weight")
    both = weights_sha256(tmp_path)
    lines = "".join(
        f"{hashlib.sha256(c).hexdigest()}  model-0000{i}-of-00002.safetensors\n"
        for i, c in ((1, b"a"), (2, b"b"))
    )
    assert both == hashlib.sha256(lines.encode()).hexdigest()


# publishing from elsewhere


def test_local_data_at_a_path_like_a_hub_id_is_not_named_as_a_hub_dataset(hub, adapter):
    recipe = Recipe.from_file(adapter / "recipe.json")
    assert recipe.task.dataset.path == "./data/mine"
    card = text_of(hub, "local/tuned", "README.md")
    assert "datasets:" not in card.split("---")[1]
    assert "name: ./data/mine" in card
    assert json.loads(text_of(hub, "local/tuned", "recipe.json"))["task"]["dataset"]["path"] == (
        "./data/mine"
    )


@pytest.mark.parametrize("path", ["a/b/c", "../data", "data", "./x y/z"])
def test_data_at_any_path_gives_a_card_that_the_hub_accepts(client, hub, base, tmp_path, path):
    from pipelines.results.names import explicit, public_name

    work = tmp_path / "work"
    (work / path).mkdir(parents=True)
    with contextlib.chdir(work):
        named = explicit(path)
        assert named.startswith(".")
        assert public_name(named) == (
            "./data" if path == "../data" else f"./{path}".replace("././", "./")
        )
        shown = public_name(named)
    copy = shutil.copytree(base, tmp_path / "result")
    recipe = Recipe.from_file(copy / "recipe.json")
    source = replace(recipe.task.dataset, path=named)
    changed = replace(recipe, task=replace(recipe.task, dataset=source))
    (copy / "recipe.json").write_text(changed.to_json())
    sidecar = json.loads((copy / "task.json").read_text())
    sidecar["dataset"]["path"] = shown
    (copy / "task.json").write_text(json.dumps(sidecar))
    list_files_again(copy)
    done = client("publish", folder=copy, repo="local/paths")
    assert done.code == 0, done.said
    assert "datasets:" not in text_of(hub, "local/paths", "README.md").split("---")[1]


def test_a_folder_of_links_that_nobody_may_write_is_published(client, hub, base, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for file in base.glob("[!.]*.*"):
        (links / file.name).symlink_to(file)
    (tmp_path / "x").mkdir()
    links.chmod(0o555)
    done = client("publish", folder=links, repo="local/links")
    links.chmod(0o755)
    assert done.code == 0, done.said
    assert "model.safetensors" in hub.repos["models", "local/links"].commit("main")["files"]
    assert sorted(file.name for file in links.iterdir()) == sorted(
        file.name for file in base.glob("[!.]*.*")
    )


def test_leftovers_of_a_killed_publication_are_cleared(client, base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    (copy / ".publish-abc").mkdir()
    (copy / ".publish-abc" / "model.safetensors").write_bytes(b"x")
    assert client("publish", folder=copy, repo="local/leftovers").code == 0
    assert not list(copy.glob(".publish-*"))


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("local/app-reviews", "/app", False),
        ("./data/mine", "/data", False),
        ("https://host.org/app", "/app", False),
        ("/application", "/app", False),
        ("/app.bak/x", "/app", False),
        ("../app", "/app", False),
        ("x/app", "/app", False),
        ("/app", "/app", True),
        ("/app/x", "/app", True),
        ("see /app.", "/app", True),
        ("(/app)", "/app", True),
        ("file:///app/x", "/app", True),
        ("path=/app", "/app", True),
        ("/home/jürgen/x", "/home/jürgen", True),
    ],
)
def test_a_path_of_this_machine_is_recognised(text, path, expected):
    from pipelines.hub.contents import contains_path

    assert contains_path(text, path) is expected


def test_paths_are_searched_in_values_and_not_in_vocabularies(monkeypatch):
    from pipelines.errors import RecipeError
    from pipelines.hub.contents import check_contents

    monkeypatch.setenv("HOME", "/app")
    tokenizer = {"model": {"vocab": {"/app": 1}, "merges": [["/app", "s"], "/app x"]}}
    good = {
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "vocab.json": b'{"/app": 1}',
        "merges.txt": b"/app s\n",
        "recipe.json": b'{"/app": "local/app-reviews"}',
    }
    check_contents(good)
    for name, content in {
        "task.json": b'{"a": [{"b": "\\u002fapp/x"}]}',
        "README.md": b"| base | <code>/app/base</code> |",
        "tokenizer_config.json": b'{"name_or_path": "/app"}',
    }.items():
        with pytest.raises(RecipeError, match="has a path of this machine, /app"):
            check_contents(good | {name: content})
