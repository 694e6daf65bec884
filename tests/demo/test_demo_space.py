"""Spaces: what is published to the Hub, what is refused, and that the app runs as it is there."""

import json
import subprocess
import sys
import urllib.request

import pytest
import yaml

from helpers.factories import make_tasks
from helpers.hub_process import client, environment
from pipelines.addresses import usable_port
from pipelines.flow import run
from pipelines.hub.local_hub.cards import card_errors
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Scratch, Tokenizer, Train

PUBLISH = """
import json
from huggingface_hub import HfApi
from pipelines.demo.space import publish_space
from pipelines.errors import RunError
from pipelines.hub.publish import publish

def tried(*arguments, **options):
    try:
        return publish_space(*arguments, **options)
    except RunError as error:
        return str(error)

HfApi().create_repo("local/other", repo_type="space", space_sdk="gradio", private=True)
HfApi().upload_file(
    repo_id="local/other", repo_type="space", path_or_fileobj=b"1", path_in_repo="app.py"
)
model = publish("small", "local/small")
answers = {
    "model": model,
    "first": tried("local/small", "local/page"),
    "again": tried("local/small", "local/page", precision="bf16"),
    "other": tried("local/small", "local/other"),
    "public": tried("local/small", "local/page", public=True),
    "stranger": tried("local/small", "stranger/page"),
    "folder": tried("small", "local/page"),
    "missing": tried("local/nothing", "local/page"),
    "name": tried("local/small", "page"),
}
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def published(hub, place, helpdesk):
    """What a process said that published a result, and Spaces of it."""
    size = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64}
    run(
        Recipe(
            name="small",
            task=make_tasks(helpdesk)["text_classification"],
            model=Scratch(**size, tokenizer=Tokenizer(vocab_size=300)),
            train=Train(max_steps=1),
            output_dir=str(place / "small"),
        )
    )
    said = client(hub, place / "home", "-c", PUBLISH, cwd=place)
    [line] = [line for line in said.splitlines() if line.startswith("ANSWERS")]
    return json.loads(line.removeprefix("ANSWERS")), said


def files_of(hub, space):
    """Return the files of a Space with their contents."""
    files = hub.repos["spaces", space].commits[-1]["files"]
    return {path: hub.blob_file(file["sha256"]).read_bytes() for path, file in files.items()}


def test_a_space_has_its_settings_its_app_and_the_package(hub, published):
    answers, said = published
    repo = hub.repos["spaces", "local/page"]
    assert repo.private
    assert [commit["id"] for commit in repo.commits[1:]] == [answers["first"], answers["again"]]
    files = files_of(hub, "local/page")
    settings = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert settings["sdk"] == "gradio"
    assert settings["app_file"] == "app.py"
    assert settings["models"] == ["local/small"]
    app = files["app.py"].decode()
    compile(app, "app.py", "exec")
    assert f'"local/small",\n    revision="{answers["model"]}",\n    precision="bf16"' in app
    needed = files["requirements.txt"].decode().splitlines()
    assert needed[0] == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert any(line.startswith("torch") for line in needed)
    assert not any(line.startswith(("pytest", "gradio")) for line in needed)
    assert {"pipelines/demo/page.py", "pipelines/hub/templates/card.md.jinja"} <= files.keys()
    assert not [path for path in files if "__pycache__" in path]
    assert "local/small is private: give the Space a secret HF_TOKEN that may read it" in said
    assert "hf_" not in said.replace("hf_***", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "publish: local/other has another app. Give another name."),
        ("public", "public: local/page is private. Change that in its settings, or omit --public."),
        ("stranger", "publish: 'local' may not write to 'stranger'; it may write to local."),
        ("folder", "small: is a folder of this machine. Publish it with `gpt2-recipes publish"),
        ("missing", "local/nothing: 'local/nothing' is not a folder, nor a model on the Hub."),
        ("name", "publish: "),
    ],
)
def test_what_cannot_be_published_is_refused(published, name, message):
    assert published[0][name].startswith(message)
    assert len(published[0][name].splitlines()) == 1


def test_the_app_of_a_space_runs_with_the_package_that_is_there(hub, published, place, tmp_path):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    for path, content in files_of(hub, "local/page").items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content.replace(b'"Classify"', b'"Of this Space"'))
    port = usable_port("127.0.0.1", 0)
    variables = environment(hub, place / "home") | {"GRADIO_SERVER_PORT": str(port)}
    del variables["PYTHONPATH"]
    with subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == f"small: http://0.0.0.0:{port} until Ctrl-C\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/config") as answer:
            config = json.loads(answer.read())
        process.terminate()
        assert process.wait(timeout=30) == 0
    buttons = [each["props"].get("value") for each in config["components"]]
    assert "Of this Space" in buttons


@pytest.mark.parametrize(
    ("settings", "errors"),
    [
        ("sdk: gradio\ncolorFrom: blue", []),
        ("title: a", ['"sdk" is required']),
        ("sdk: gradia", ['"sdk" must be one of gradio, docker, static']),
        ("sdk: gradio\nsdk_version: 6.31", ['"sdk_version" must be a string']),
        ("sdk: docker\nmodels: [a b]", ["\"models\" 'a b' is not a repository id"]),
    ],
)
def test_the_local_hub_refuses_settings_as_the_hub_does(settings, errors):
    assert card_errors(f"---\n{settings}\n---\n".encode(), "spaces") == errors
    assert card_errors(b"---\ntitle: a\n---\n", "models") == []
