"""Make a Space of the Hub that serves the page of a published result."""

from __future__ import annotations

from importlib.metadata import requires
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from packaging.requirements import Requirement

import pipelines
from pipelines.console import say
from pipelines.errors import Problem, RecipeError
from pipelines.hub.contents import Contents
from pipelines.hub.destination import account_problems, ensure_repository, name_problems
from pipelines.hub.escaping import escape_markdown, literal
from pipelines.hub.pin import resolve_commit
from pipelines.hub.result_folder import result_folder
from pipelines.hub.upload import find_changed_files, list_files
from pipelines.hub_client.client import Hub, reason
from pipelines.hub_client.transport import HubError
from pipelines.process import quiet_libraries
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Precision
from pipelines.shipped import constraints

PACKAGE = "pipelines"
MARK = "# Written by `gpt2-recipes demo --publish`."
APP = """\
{mark}
import os

from pipelines.demo.serve import serve

serve(
    {repo},
    revision={revision},
    precision={precision},
    host="0.0.0.0",
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
"""
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"


@quiet_libraries()
def publish_space(
    repo: str,
    space: str,
    *,
    public: bool = False,
    revision: str | None = None,
    precision: Precision | None = None,
) -> str:
    """Make or update the Space of a published result in one commit; return the commit.

    The Space holds this package, so that it needs nothing but its dependencies. It loads the result
    at the commit that `revision`, or the newest version, has now. Raise RecipeError for a result
    that is not on the Hub, and for a Space that cannot be written or holds something else.
    """
    if Path(repo).is_dir():
        text = f"is a folder of this machine. Publish it with `gpt2-recipes publish {repo} "
        text += "USER/NAME`, and give that id here."
        raise RecipeError([Problem(repo, text)])
    hub = Hub()
    problems: list[Problem] = []
    revision = resolve_commit(
        hub, repo, revision, kind="model", path=repo, problems=problems, file="task.json"
    )
    if problems:
        raise RecipeError(problems)
    folder = result_folder(repo, revision, files=("recipe.json", "task.json"))
    name = Recipe.from_file(folder / "recipe.json").name
    contents = space_contents(name, repo, revision, precision)
    try:
        commit = upload_space(hub, contents, space, public=public)
        hidden = hub.ask(lambda api: api.model_info(repo)).private
    except (HubError, HfHubHTTPError) as error:
        raise RecipeError([Problem("publish", f"{space}: {reason(error)}")]) from error
    say(f"published: {constants.ENDPOINT}/spaces/{space} at {commit}")
    if hidden:
        say(f"  {repo} is private: give the Space a secret HF_TOKEN that may read it")
    return commit


def upload_space(hub: Hub, contents: Contents, space: str, *, public: bool) -> str:
    """Commit the files of a Space, which is created if it is missing; return the commit."""
    problems = (
        list(name_problems(space))
        or list(account_problems(hub, space))
        or list(ensure_repository(hub, space, public=public, kind="space"))
    )
    if problems:
        flags = {"push_to": "publish"}
        raise RecipeError([Problem(flags.get(p.path, p.path), p.message) for p in problems])
    commit = hub.ask(lambda api: commit_space(api, contents, space))
    uploaded = hub.ask(lambda api: list_files(api, space, commit, kind="space"))
    if changed := find_changed_files(contents, uploaded):
        text = f"{space}: {', '.join(changed)} arrived changed. Run the same command again."
        raise RecipeError([Problem("publish", text)])
    return commit


def commit_space(api: HfApi, contents: Contents, space: str) -> str:
    """Commit the files, and delete those of an earlier version of the package.

    Raise RecipeError for a Space with an app that is not ours.
    """
    head = api.space_info(space).sha
    there = list_files(api, space, head, kind="space")
    if "app.py" in there and f"{PACKAGE}/demo/page.py" not in there:
        raise RecipeError([Problem("publish", f"{space} has another app. Give another name.")])
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path, content) for path, content in sorted(contents.items())),
        *(
            CommitOperationDelete(path)
            for path in there
            if path.startswith(f"{PACKAGE}/") and path not in contents
        ),
    ]
    message = "A demo by gpt2-recipes"
    commit = api.create_commit(
        space, operations, commit_message=message, parent_commit=head, repo_type="space"
    )
    return commit.oid


def space_contents(
    name: str, repo: str, revision: str | None, precision: Precision | None
) -> Contents:
    """Return the files of a Space: its settings, its app, what to install, and this package."""
    app = APP.format(
        mark=MARK,
        repo=literal(repo),
        revision=literal(revision),
        precision=literal(precision),
    )
    root = Path(str(pipelines.__file__)).parent
    files = {
        f"{PACKAGE}/{file.relative_to(root).as_posix()}": file
        for file in sorted(root.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    return {
        "README.md": readme(name, repo).encode(),
        "app.py": app.encode(),
        "requirements.txt": "\n".join([CPU_WHEELS, *requirements(), ""]).encode(),
        **files,
    }


def readme(name: str, repo: str) -> str:
    """Return the card of a Space: the settings that the Hub reads, and where the model is."""
    settings = {
        "title": name,
        "emoji": "🎫",
        "colorFrom": "indigo",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": constraints()["gradio"],
        "python_version": "3.11",
        "app_file": "app.py",
        "models": [repo],
        "tags": ["gpt2-recipes"],
    }
    head = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    model = f"[{escape_markdown(repo)}]({constants.ENDPOINT}/{repo})"
    return f"---\n{head}---\n\n# {escape_markdown(name)}\n\nA page that shows {model}.\n"


def requirements() -> list[str]:
    """Return the dependencies of this package, without its extras: the Hub installs Gradio."""
    found = map(Requirement, requires("gpt2-recipes") or ())
    return sorted(
        str(each) for each in found if each.marker is None or each.marker.evaluate({"extra": ""})
    )
