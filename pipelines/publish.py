"""Publish a result to the Hub: checks before training, one commit after it, read back."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    is_offline_mode,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from transformers import Trainer

from pipelines.card import model_card
from pipelines.check_result import check_result
from pipelines.checkpoints import reading
from pipelines.errors import Problem, PublishError, RecipeError
from pipelines.hub import FILES, load_adapter, public_name
from pipelines.recipe import Model, Recipe, Scratch, wrong_repo_id
from pipelines.report import console
from pipelines.result import PUBLISH_STAGE, write_manifest
from pipelines.result import read_result as read_whole_result

TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further attempt
RETRIED = (412, 429, 500, 502, 503, 504)  # 412: somebody else's commit came first
Answer = TypeVar("Answer")


def check_destination(recipe: Recipe, repo: str, *, public: bool) -> None:
    """Make sure, before training, that `repo` can take the result; create it if it is not there.

    Raise RecipeError for what would fail later, and when the Hub does not answer.
    """
    try:
        problems = wrong_destination(HfApi(), recipe, repo, public=public)
    except (HfHubHTTPError, httpx2.TransportError) as error:
        text = f"{constants.ENDPOINT} does not answer: {first_line(error)}"
        problems = [Problem("push_to", text)]
    if problems:
        raise RecipeError(problems)


def wrong_destination(api: HfApi, recipe: Recipe, repo: str, *, public: bool) -> list[Problem]:
    """Return what is wrong with the account, the base or the repository, which it creates last."""
    return (
        list(wrong_repo_id(repo))
        or list(wrong_account(api, repo))
        or list(wrong_base(api, recipe, public=public))
        or list(wrong_repository(api, repo, public=public))
    )


def wrong_account(api: HfApi, repo: str) -> Iterator[Problem]:
    """Yield why this account may not write to the owner of `repo`."""
    if is_offline_mode():
        yield Problem("push_to", "HF_HUB_OFFLINE is set.")
        return
    owner = repo.split("/")[0]
    try:
        account = attempt(api.whoami)
    except LocalTokenNotFoundError:
        yield Problem("push_to", "nobody is logged in. Use `hf auth login`, or set HF_TOKEN.")
        return
    except HfHubHTTPError as error:
        if status_of(error) != 401:
            raise
        yield Problem("push_to", "the Hub does not know the token. Use `hf auth login`.")
        return
    roles = {org["name"]: org.get("roleInOrg") for org in account["orgs"]}
    if owner != account["name"] and roles.get(owner) not in ("admin", "write", "contributor"):
        text = f"{account['name']!r} may not write to {owner!r}"
        names = [account["name"], *(name for name, role in roles.items() if role != "read")]
        yield Problem("push_to", f"{text}; it may write to {', '.join(names)}.")
        return
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        yield Problem("push_to", "the token may only read. Use one that may write.")


def wrong_base(api: HfApi, recipe: Recipe, *, public: bool) -> Iterator[Problem]:
    """Yield why others could not load an adapter's base."""
    if recipe.lora is None or not isinstance(recipe.model, Model):
        return
    name, revision = recipe.model.name_or_path, recipe.model.revision
    if Path(name).is_dir():
        yield Problem(
            "model.name_or_path",
            f"{name!r} is a folder of this machine, where nobody else can load it from. Publish "
            f"it with `gpt2-recipes publish {name} USER/NAME` and name that.",
        )
        return
    try:
        info = attempt(lambda: api.model_info(name, revision=revision))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        at = f" at {revision}" if revision else ""
        yield Problem("model.name_or_path", f"the base {name!r}{at} is not on the Hub.")
        return
    if public and info.private:
        yield Problem("public", f"the base {name} is private, so that others cannot load it.")


def wrong_repository(api: HfApi, repo: str, *, public: bool) -> Iterator[Problem]:
    """Create `repo` if it is not there; yield why it cannot be, or is not as private as asked."""
    try:
        private = attempt(lambda: api.model_info(repo)).private
    except RepositoryNotFoundError:
        try:
            attempt(lambda: api.create_repo(repo, private=not public, exist_ok=True))
        except HfHubHTTPError as error:
            if status_of(error) not in (401, 403):
                raise
            yield Problem("push_to", f"{repo} cannot be created: {first_line(error)}")
            return
        private = attempt(lambda: api.model_info(repo)).private
    if private and public:
        yield Problem("public", f"{repo} is private. Change that in its settings, or do not ask.")
    if not private and not public:
        yield Problem("push_to", f"{repo} is public. With --public you agree to that.")


def publish(folder: str | Path, repo: str, *, public: bool = False) -> str:
    """Upload a result in one commit, read its checksums back and return the commit.

    Raise RecipeError for a result or a destination that cannot be published, before any file is
    sent, and PublishError when the Hub does not take it. Then the same call goes on: what has
    arrived is not sent again.
    """
    folder = Path(folder)
    with reading(folder):
        return publish_held(folder, repo, public=public)


def publish_held(folder: Path, repo: str, *, public: bool) -> str:
    """Do what `publish` does, in a folder that no run changes meanwhile."""
    recipe, sidecar = read_result(folder)
    api = HfApi()
    with tempfile.TemporaryDirectory(dir=folder, prefix=PUBLISH_STAGE) as name:
        stage = Path(name)
        fill(stage, folder, portable(recipe), sidecar, repo)
        check_contents(stage)
        try:
            if problems := wrong_destination(api, recipe, repo, public=public):
                raise RecipeError(problems)
            commit = attempt(lambda: upload(api, stage, repo))
            checked = attempt(
                lambda: api.verify_repo_checksums(repo, revision=commit, local_dir=stage)
            )
        except (HfHubHTTPError, httpx2.TransportError, OSError, RuntimeError) as error:
            raise PublishError(folder, repo, public, first_line(error)) from error
        wrong = [*(item["path"] for item in checked.mismatches), *checked.extra_paths]
        if wrong:
            raise PublishError(folder, repo, public, f"{', '.join(wrong)} arrived changed")
    console().print(f"published: {constants.ENDPOINT}/{repo} at {commit}", markup=False)
    return commit


def read_result(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return recipe and sidecar. Raise RecipeError for a folder that no finished run has left."""
    weights = "adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"
    needed = [name for name in ("recipe.json", "task.json") if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in weights):
        needed.append(weights[0])
    if needed:
        raise RecipeError([Problem(str(folder), f"has no {' and no '.join(needed)}.")])
    read_whole_result(folder, str(folder))
    return check_result(folder)


def portable(recipe: Recipe) -> Recipe:
    """Return the recipe without this machine's paths; what is below the current folder stays."""
    task = recipe.task
    source = replace(task.dataset, path=public_name(task.dataset.path))
    model: Model | Scratch = recipe.model
    if isinstance(model, Model):
        named = None if model.tokenizer is None else public_name(model.tokenizer)
        model = replace(model, name_or_path=public_name(model.name_or_path), tokenizer=named)
    elif isinstance(model.tokenizer, Model):
        name = public_name(model.tokenizer.name_or_path)
        model = replace(model, tokenizer=replace(model.tokenizer, name_or_path=name))
    return replace(
        recipe,
        task=replace(task, dataset=source),
        model=model,
        output_dir=None,
        push_to=None,
        public=False,
    )


def fill(stage: Path, folder: Path, recipe: Recipe, sidecar: dict[str, Any], repo: str) -> None:
    """Put what a repository holds into an empty folder beside the result."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in FILES):
            os.link(file, stage / file.name)
    for name, text in (
        ("recipe.json", recipe.to_json()),
        ("README.md", model_card(recipe, sidecar, repo)),
    ):
        (stage / name).unlink(missing_ok=True)
        (stage / name).write_text(text, encoding="utf-8")
    write_manifest(stage)


def check_contents(stage: Path) -> None:
    """Raise RecipeError for a token or a path of this machine in what would be uploaded."""
    secrets = [token.encode() for token in (get_token(), os.environ.get("HF_TOKEN")) if token]
    places = [str(path).encode() for path in (Path.home(), Path.cwd()) if len(path.parts) > 1]
    problems = []
    for file in sorted(stage.glob("*")):
        if file.suffix not in (".json", ".md", ".txt"):
            continue
        content = file.read_bytes()
        if TOKEN.search(content) or any(secret in content for secret in secrets):
            problems.append(Problem(file.name, "holds a token of the Hub."))
        for place in places:
            if place in content:
                problems.append(Problem(file.name, f"holds a path of here, {place.decode()}."))
    if problems:
        raise RecipeError(problems)


def upload(api: HfApi, stage: Path, repo: str) -> str:
    """Commit the files of `stage`, and leave out those of an earlier result; return the commit."""
    head = api.model_info(repo).sha
    there = api.list_repo_tree(repo, recursive=True, revision=head)
    ours = sorted(file.name for file in stage.iterdir())
    stale = [
        item.path
        for item in there
        if isinstance(item, RepoFile)
        and item.path not in ours
        and any(fnmatch(item.path, pattern) for pattern in FILES)
    ]
    commit = api.create_commit(
        repo,
        [
            *(CommitOperationAdd(name, stage / name) for name in ours),
            *(CommitOperationDelete(path) for path in stale),
        ],
        commit_message="A result of gpt2-recipes",
        parent_commit=head,
    )
    return commit.oid


def attempt(call: Callable[[], Answer]) -> Answer:
    """Return what `call` returns, after further attempts where the Hub or the line failed."""
    for pause in PAUSES:
        try:
            return call()
        except HfHubHTTPError as error:
            if status_of(error) not in RETRIED:
                raise
        except httpx2.TransportError:
            pass
        time.sleep(pause)
    return call()


def status_of(error: HfHubHTTPError) -> int | None:
    """Return the HTTP status of an error."""
    return error.response.status_code if error.response is not None else None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def check_reload(trainer: Trainer, folder: Path, batch: dict[str, torch.Tensor]) -> None:
    """Raise RuntimeError unless the result on disk gives the logits of the trained model."""
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    logits = []
    for model in (trained.eval(), load_adapter(folder).model):
        inputs = {k: v.to(trained.device) for k, v in batch.items() if k != "labels"}
        with torch.inference_mode(), trainer.accelerator.autocast():
            outputs = model(**inputs)
        found = [value.float() for name, value in outputs.items() if name.endswith("logits")]
        logits.append(torch.stack(found))
    apart = (logits[0] - logits[1]).abs().max().item()
    if not apart <= 1e-3 * max(1.0, logits[0].abs().max().item()):
        raise RuntimeError(f"{folder} gives other logits than the trained model, by {apart:.3g}.")
