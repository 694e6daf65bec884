"""Publishing under faults, and what is refused before anything is sent."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from helpers.commands import CommandServer
from helpers.factories import ROOT
from helpers.hub_process import SECRET, client, environment
from pipelines.data.source import DatasetSource
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Scratch, Tokenizer, Train
from pipelines.results.files import write_manifest
from pipelines.tasks.text_classification import TextClassification

CLI = ("-m", "pipelines")


@pytest.fixture(scope="module")
def result(place, helpdesk):
    """The folder of a finished run of a small classifier."""
    from pipelines.flow import run

    source = DatasetSource(path=str(helpdesk / "classify"), eval_split="test")
    recipe = Recipe(
        name="small",
        task=TextClassification(dataset=source, label_column="queue", max_length=64),
        model=Scratch(
            n_layer=1, n_head=2, n_embd=32, n_positions=64, tokenizer=Tokenizer(vocab_size=300)
        ),
        train=Train(max_steps=2),
        output_dir=str(place / "small"),
    )
    run(recipe)
    return recipe.folder


class Publisher:
    """A process that publishes on demand, since importing costs seconds."""

    def __init__(self, server, place):
        self.process = subprocess.Popen(
            [server.python, str(ROOT / "tests" / "helpers" / "hub_user.py"), "publish_lines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=server.environment,
            cwd=place,
        )
        self.answer()

    def publish(self, folder, repo: str, *, public=False, token=SECRET) -> tuple[int, str]:
        """Publish; return exit code and message."""
        arguments = {"folder": str(folder), "repo": repo, "public": public, "token": token or ""}
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> tuple[int, str]:
        """Return the next answer of the process."""
        for line in self.process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                return answer["code"], answer["said"]
        raise AssertionError("the process has ended")


@pytest.fixture(scope="module")
def server(hub, place, tmp_path_factory):
    """A process that runs commands as a user of this Hub, with one cache."""
    folder = tmp_path_factory.mktemp("server")
    with CommandServer(folder, environment(hub, place / "home")) as started:
        yield started


@pytest.fixture(scope="module")
def publisher(server, place):
    """One publishing process for the module."""
    found = Publisher(server, place)
    yield found
    found.process.stdin.close()
    found.process.wait(30)


def forget_large_files(hub) -> None:
    """Drop what LFS has, so that it must be sent again."""
    for repo in hub.repos.values():
        for file in repo.commits[-1]["files"].values():
            if file["lfs"]:
                (hub.folder / "blobs" / file["sha256"]).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def requests(hub, publisher, result):
    """Every request of a publication where nothing goes wrong."""
    hub.seen.clear()
    assert publisher.publish(result, "local/plain") == (0, "")
    return [(seen.method, seen.path) for seen in hub.seen]


def is_complete(hub, repo: str, result) -> bool:
    """Tell whether a repository has every file; raise if it has only some of them."""
    found = hub.repos.get(("models", repo))
    files = set(found.commit("main")["files"]) - {".gitattributes"} if found else set()
    here = {file.name for file in result.glob("[!.]*.*")}  # not the lock
    stays = {"run.log", "predictions.jsonl", "samples.jsonl"}  # what has texts of the rows
    stays |= {"report.html", "statistics.json", "metrics.jsonl"}
    assert stays <= here
    wanted = here - stays | {"README.md"}
    assert files in (set(), wanted), files ^ wanted
    return bool(files)


@pytest.mark.parametrize("action", [503, 429, "reset", "cut"])
def test_one_fault_at_any_request_is_retried(hub, publisher, requests, result, action):
    from helpers.recording_hub import Fault

    assert {method for method, _ in requests} == {"GET", "POST", "PUT"}
    assert len(requests) >= 10
    for number in range(len(requests)):
        repo = f"local/{action}-{number}"
        forget_large_files(hub)
        hub.faults[:] = [Fault(action, skip=number)]
        code, said = publisher.publish(result, repo)
        assert hub.faults[0].times == 0
        assert code == 0, (requests[number], said)
        assert is_complete(hub, repo, result)


def test_a_hub_that_stays_broken_leaves_the_command_that_finishes(hub, server, result, place):
    from helpers.recording_hub import Fault

    forget_large_files(hub)
    hub.faults[:] = [Fault(503, "POST", "/commit/", times=100)]
    words = (hub, place / "home", *CLI, "publish", result, "local/broken")
    said = client(*words, cwd=place, python=server.python, code=6)
    assert f"gpt2-recipes publish {result} local/broken" in said
    assert "The result is complete in" in said
    assert not is_complete(hub, "local/broken", result)
    hub.faults.clear()
    hub.seen.clear()
    client(*words, cwd=place, python=server.python)
    assert is_complete(hub, "local/broken", result)
    assert not [seen for seen in hub.seen if seen.method == "PUT"]  # the weights were there


@pytest.mark.parametrize("path", ["/whoami", "/api/models/local/"])
def test_a_hub_that_does_not_answer_after_training_costs_nothing(hub, publisher, result, path):
    from helpers.recording_hub import Fault

    forget_large_files(hub)
    hub.faults[:] = [Fault("reset", path=path, times=100)]
    code, said = publisher.publish(result, "local/silent")
    hub.faults.clear()
    assert code == 6
    assert f"gpt2-recipes publish {result} local/silent" in said


def sent(hub) -> list[str]:
    """Return the requests that carry files."""
    kinds = ("/preupload/", "/commit/", "/lfs/", "/info/lfs/")
    return [seen.path for seen in hub.seen if any(kind in seen.path for kind in kinds)]


def test_a_public_repository_is_refused_unless_public_is_requested(hub, publisher, result):
    assert publisher.publish(result, "local/seen") == (0, "")
    hub.repos["models", "local/seen"].private = False
    hub.seen.clear()
    code, said = publisher.publish(result, "local/seen")
    assert code == 2
    assert "local/seen is public" in said
    assert not sent(hub)
    assert publisher.publish(result, "local/seen", public=True) == (0, "")
    hub.repos["models", "local/seen"].private = True
    code, said = publisher.publish(result, "local/seen", public=True)
    assert code == 2
    assert "local/seen is private" in said


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, "local/x", "nobody is logged in"),
        ("hf_unknown", "local/x", "does not know the token"),
        ("hf_reader", "local/x", "the token may only read"),
        ("hf_stranger", "local/x", "'stranger' may not write to 'local'; it may write to stranger"),
        ("hf_stranger", "x", "'x' is not of the form USER/NAME"),
    ],
)
def test_an_account_that_may_not_publish_gets_the_reason(
    hub, publisher, result, token, repo, message
):
    hub.seen.clear()
    code, said = publisher.publish(result, repo, token=token)
    assert code == 2
    assert message in said
    assert not sent(hub)


def test_a_run_that_could_not_be_published_does_not_train(hub, server, place, checkpoint, helpdesk):
    script = place / "recipe.py"
    source = DatasetSource(path=str(helpdesk / "classify"), eval_split="test")
    recipe = Recipe(
        name="local-base",
        task=TextClassification(dataset=source, label_column="queue", max_length=64),
        model=Model(name_or_path=str(checkpoint)),
        lora=Lora(r=2),
        push_to="local/never",
    )
    lines = "from pipelines.recipe_cli import main; from pipelines.recipe.recipe import Recipe; "
    script.write_text(f"{lines}main(Recipe.from_json({recipe.to_json()!r}))")
    said = client(hub, place / "home", script, cwd=place, python=server.python, code=2)
    assert f"{str(checkpoint)!r} is a folder of this machine" in said
    assert f"gpt2-recipes publish {checkpoint} USER/NAME" in said
    assert not (place / "runs" / "local-base").exists()
    hub.faults.clear()


def test_two_processes_publish_once(hub, server, place, helpdesk):
    script = place / "two.py"
    source = DatasetSource(path=str(helpdesk / "classify"), eval_split="test")
    recipe = Recipe(
        name="two",
        task=TextClassification(dataset=source, label_column="queue", max_length=64),
        model=Scratch(
            n_layer=1, n_head=2, n_embd=32, n_positions=64, tokenizer=Tokenizer(vocab_size=300)
        ),
        train=Train(max_steps=2),
        push_to="local/two",
    )
    lines = "from pipelines.recipe_cli import main; from pipelines.recipe.recipe import Recipe; "
    script.write_text(f"{lines}main(Recipe.from_json({recipe.to_json()!r}))")
    config = ROOT / "accelerate_configs" / "cpu_2_processes.yaml"
    launch = ("-m", "accelerate.commands.launch", "--config_file", config)
    said = client(hub, place / "home", *launch, script, cwd=place, python=server.python)
    assert "two: 2 process(es) on cpu" in said
    assert said.count("published: ") == 1
    assert len(hub.repos["models", "local/two"].commits) == 2


def test_a_base_that_others_cannot_load_is_refused(hub, publisher, result, checkpoint, tmp_path):
    from pipelines.flow import run

    recipe = Recipe.from_json((result / "recipe.json").read_text())
    adapter = tmp_path / "adapter"
    recipe = replace(recipe, model=Model(name_or_path=str(checkpoint)), lora=Lora(r=2))
    run(replace(recipe, output_dir=str(adapter)))

    def name_base(name: str) -> None:
        for file in ("recipe.json", "task.json", "adapter_config.json"):
            text = (adapter / file).read_text().replace(json.dumps(named[-1]), json.dumps(name))
            (adapter / file).write_text(text)
        write_manifest(adapter)
        named.append(name)

    named = [str(checkpoint)]
    name_base("local/gone")
    code, said = publisher.publish(adapter, "local/orphan")
    assert code == 2
    assert "the base 'local/gone' is not on the Hub" in said
    assert publisher.publish(result, "local/hidden") == (0, "")
    name_base("local/hidden")
    code, said = publisher.publish(adapter, "local/orphan2", public=True)
    assert code == 2
    assert "the base local/hidden is private" in said


def test_a_token_in_a_result_is_detected_before_it_is_sent(hub, publisher, result, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    sidecar = json.loads((copy / "task.json").read_text())
    sidecar["hardware"] = "hf_" + "x" * 34
    (copy / "task.json").write_text(json.dumps(sidecar))
    hub.seen.clear()
    code, said = publisher.publish(copy, "local/leak")
    assert code == 2
    assert "task.json: has a token" in said
    assert not sent(hub)
    sidecar["hardware"] = "x"
    sidecar["metrics"]["accuracy"] = float("nan")
    (copy / "task.json").write_text(json.dumps(sidecar))
    code, said = publisher.publish(copy, "local/leak")
    assert code == 2
    assert "its accuracy is nan" in said
    (copy / "model.safetensors").unlink()
    code, said = publisher.publish(copy, "local/leak")
    assert code == 2
    assert "has no adapter_model.safetensors" in said


def test_files_of_an_earlier_result_are_deleted_and_others_stay(hub, publisher, result):
    repo = hub.repos["models", "local/plain"]
    files = dict(repo.commit("main")["files"])
    files |= {"vocab.json": hub.blob(b"{}", lfs=False), "notes.md": hub.blob(b"mine", lfs=False)}
    hub.store(repo, **repo.with_commit("main", files, "by hand", "", "local"))
    assert publisher.publish(result, "local/plain") == (0, "")
    files = repo.commit("main")["files"]
    assert "vocab.json" not in files
    assert "notes.md" in files
    num_commits = len(repo.commits)
    assert publisher.publish(result, "local/plain") == (0, "")
    assert len(repo.commits) == num_commits  # nothing was new


def test_a_published_result_has_no_predictions_and_compares_without_its_weights(
    hub, publisher, result, place
):
    assert publisher.publish(result, "local/plain") == (0, "")
    assert "predictions.jsonl" not in hub.repos["models", "local/plain"].commit("main")["files"]
    hub.seen.clear()
    done = subprocess.run(
        [sys.executable, *CLI, "compare", str(result), "local/plain", "--json"],
        capture_output=True,
        text=True,
        env=environment(hub, place / "home-compare"),
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["score"] for each in found["results"]] == [found["results"][0]["score"]] * 2
    assert found["tests"] == [{"none_because": "local/plain has no predictions.jsonl here"}]
    assert not [seen.path for seen in hub.seen if "safetensors" in seen.path]
