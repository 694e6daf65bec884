"""Publish a result to the Hub: checks before training, one commit after it, read back."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

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
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoFile
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer

from pipelines.card import model_card
from pipelines.check_result import check_result
from pipelines.checkpoints import reading
from pipelines.errors import Problem, PublishError, RecipeError
from pipelines.hub import (
    check_base,
    checkpoint_folder,
    combined_sha256,
    load_adapter,
    public_name,
    weights_sha256,
)
from pipelines.hub_client import (
    Hub,
    HubError,
    fetch_checkpoint,
    is_path,
    reason,
    status_of,
    weight_files,
)
from pipelines.recipe import Model, Recipe, Scratch, wrong_repo_id
from pipelines.report import console, quietly
from pipelines.result import FILES, NOT_LISTED
from pipelines.result import read_result as read_whole_result

TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
TEXT_SUFFIXES = (".json", ".md", ".txt", ".jinja")
VOCABULARIES = ("vocab.json", "merges.txt")  # their entries are tokens, not paths
Contents = dict[str, Path | bytes]
"""What a repository is to hold: each file by its name, or its bytes where publishing writes it."""


def check_destination(recipe: Recipe, repo: str, *, public: bool) -> None:
    """Make sure, before training, that `repo` can take the result; create it if it is not there.

    Raise RecipeError for what would fail later, and when the Hub does not answer.
    """
    hub = Hub()
    try:
        problems = wrong_destination(hub, recipe, repo, public=public)
    except HubError as error:
        problems = [Problem("push_to", str(error))]
    except HfHubHTTPError as error:
        problems = [Problem("push_to", f"{constants.ENDPOINT} refuses: {reason(error)}")]
    if problems:
        raise RecipeError(problems)


def wrong_destination(hub: Hub, recipe: Recipe, repo: str, *, public: bool) -> list[Problem]:
    """Return what is wrong with the account, the base or the repository, which it creates last."""
    return (
        list(wrong_name(repo))
        or list(wrong_account(hub, repo))
        or list(wrong_base(hub, recipe, public=public))
        or list(wrong_repository(hub, repo, public=public))
    )


def wrong_name(repo: str) -> Iterator[Problem]:
    """Yield why `repo` cannot be the id of a repository of a user."""
    problems = list(wrong_repo_id(repo))
    yield from problems
    if not problems:
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            yield Problem("push_to", f"the Hub takes no such name. {error}")


def wrong_account(hub: Hub, repo: str) -> Iterator[Problem]:
    """Yield why this account may not write to the owner of `repo`."""
    if is_offline_mode():
        yield Problem("push_to", "HF_HUB_OFFLINE is set.")
        return
    owner = repo.split("/")[0]
    try:
        user, roles, right = hub.ask(account)
    except LocalTokenNotFoundError:
        yield Problem("push_to", "nobody is logged in. Use `hf auth login`, or set HF_TOKEN.")
        return
    except HfHubHTTPError as error:
        if status_of(error) != 401:
            raise
        text = f"the Hub does not know the token: {reason(error)}. Use `hf auth login`."
        yield Problem("push_to", text)
        return
    if owner != user and roles.get(owner) not in ("admin", "write", "contributor"):
        text = f"{user!r} may not write to {owner!r}"
        names = [user, *(name for name, role in roles.items() if role != "read")]
        yield Problem("push_to", f"{text}; it may write to {', '.join(names)}.")
        return
    if right == "read":
        yield Problem("push_to", "the token may only read. Use one that may write.")


def account(api: HfApi) -> tuple[str, dict[str, str | None], str | None]:
    """Return the user, the role in each of its organizations, and the token's right."""
    found = api.whoami()
    roles = {org["name"]: org.get("roleInOrg") for org in found["orgs"]}
    return found["name"], roles, found.get("auth", {}).get("accessToken", {}).get("role")


def wrong_base(hub: Hub, recipe: Recipe, *, public: bool) -> Iterator[Problem]:
    """Yield why others could not load an adapter's base."""
    if recipe.lora is None or not isinstance(recipe.model, Model):
        return
    name, revision = recipe.model.name_or_path, recipe.model.revision
    if is_path(name):
        yield Problem(
            "model.name_or_path",
            f"{name!r} is a folder of this machine, where nobody else can load it from. Either "
            f"publish it first with `gpt2-recipes publish {name} USER/NAME` and name that here; or "
            "train without --push-to, and publish the result with `gpt2-recipes publish FOLDER "
            "USER/NAME --with-base USER/BASE`, which publishes both, or with `--base USER/BASE` "
            "if the same weights are on the Hub already.",
        )
        return
    try:
        info = hub.ask(lambda api: api.model_info(name, revision=revision))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        at = f" at {revision}" if revision else ""
        yield Problem("model.name_or_path", f"the base {name!r}{at} is not on the Hub.")
        return
    except HFValidationError:
        yield Problem("model.name_or_path", f"the base {name!r} is no Hub id.")
        return
    if public and info.private:
        yield Problem("public", f"the base {name} is private, so that others cannot load it.")


def wrong_repository(hub: Hub, repo: str, *, public: bool) -> Iterator[Problem]:
    """Create `repo` if it is not there; yield why it cannot be, or is not as private as asked."""
    try:
        info = hub.ask(lambda api: api.model_info(repo))
    except RepositoryNotFoundError:
        try:
            hub.ask(lambda api: api.create_repo(repo, private=not public, exist_ok=True))
        except HfHubHTTPError as error:
            yield Problem("push_to", f"{repo} cannot be created: {reason(error)}")
            return
        info = hub.ask(lambda api: api.model_info(repo))
    if info.id.lower() != repo.lower():
        yield Problem("push_to", f"{repo} is called {info.id} now. Publish to that.")
    elif info.private and public:
        yield Problem("public", f"{repo} is private. Change that in its settings, or do not ask.")
    elif not info.private and not public:
        yield Problem("push_to", f"{repo} is public. With --public you agree to that.")


def publish_finished(folder: Path, repo: str, *, public: bool) -> str:
    """Publish what a command has just computed: any problem is a PublishError.

    The destination was checked before, so that what is wrong now has changed since, and the
    result is not to be lost among errors of the recipe.
    """
    try:
        return publish(folder, repo, public=public)
    except RecipeError as error:
        text = " ".join(f"{problem.path}: {problem.message}" for problem in error.problems)
        raise PublishError(folder, repo, ["--public"] if public else [], text) from error


@quietly()
def publish(
    folder: str | Path,
    repo: str,
    *,
    public: bool = False,
    base: str | None = None,
    with_base: str | None = None,
) -> str:
    """Upload a result in one commit, read its checksums back and return the commit.

    `base` is a Hub id (with "@" and a revision, if not the newest) to name as an adapter's base in
    place of the folder that it was trained on; it must have the same weights. `with_base` is a Hub
    id to publish that folder to first.

    Raise RecipeError for a result or a destination that cannot be published, before any file is
    sent, and PublishError when the Hub does not take it. Then the same call goes on: what has
    arrived is not sent again.
    """
    folder = Path(folder)
    options = ["--public"] if public else []
    options += ["--base", base] if base else []
    options += ["--with-base", with_base] if with_base else []
    with reading(folder):
        return publish_held(folder, repo, options, public=public, base=base, with_base=with_base)


def publish_held(
    folder: Path,
    repo: str,
    options: list[str],
    *,
    public: bool,
    base: str | None,
    with_base: str | None,
) -> str:
    """Do what `publish` does, in a folder that no run changes meanwhile."""
    recipe, sidecar = read_result(folder)
    hub = Hub()
    try:
        if base or with_base:
            recipe, sidecar = on_published_base(
                hub, recipe, sidecar, base=base, with_base=with_base, public=public
            )
        contents = contents_of(folder, portable(recipe), sidecar, repo)
        check_contents(contents)
        if problems := wrong_destination(hub, recipe, repo, public=public):
            raise RecipeError(problems)
        gated = bool(hub.ask(lambda api: api.model_info(repo)).gated)
        num_bytes = sum(map(size_of, contents.values()))
        commit = hub.ask(lambda api: upload(api, contents, repo), num_bytes=num_bytes)
        there = hub.ask(lambda api: files_of(api, repo, commit))
        if wrong := arrived_changed(contents, there):
            raise PublishError(folder, repo, options, f"{', '.join(wrong)} arrived changed")
        if problem := check_afterwards(hub, repo, public=public, gated=gated):
            raise PublishError(folder, repo, options, problem)
    except (HubError, HfHubHTTPError, OSError, RuntimeError) as error:
        raise PublishError(folder, repo, options, reason(error)) from error
    console().print(f"published: {constants.ENDPOINT}/{repo} at {commit}", markup=False)
    return commit


def on_published_base(
    hub: Hub,
    recipe: Recipe,
    sidecar: dict[str, Any],
    *,
    base: str | None,
    with_base: str | None,
    public: bool,
) -> tuple[Recipe, dict[str, Any]]:
    """Return recipe and sidecar of an adapter with its base on the Hub, at a commit.

    Raise RecipeError unless the base has the weights that the adapter was trained on.
    """
    flag = "base" if base else "with_base"
    if base and with_base:
        text = "goes without --base: the base is published either now or already."
        raise RecipeError([Problem("with_base", text)])
    if recipe.lora is None or not isinstance(recipe.model, Model):
        raise RecipeError([Problem(flag, "this result is a whole model, which needs no base.")])
    if not isinstance(sidecar.get("base"), dict):
        raise RecipeError([Problem(flag, "task.json does not record the adapter's base.")])
    recorded = trained_on(recipe.model, sidecar["base"], flag)
    if with_base:
        base = publish_base(recipe.model, recorded, with_base, public=public)
    assert base is not None
    name, _, revision = base.partition("@")
    model = base_on_hub(hub, name, revision or None, recorded)
    named = {"name_or_path": model.name_or_path, "revision": model.revision}
    return replace(recipe, model=model), sidecar | {"base": recorded | named}


def trained_on(model: Model, recorded: dict[str, Any], flag: str) -> dict[str, Any]:
    """Return what is recorded of a base, with the hash of its weights.

    A result of an earlier version has no hash: then the folder that its recipe names decides.
    """
    if recorded.get("sha256"):
        return recorded
    found = weights_sha256(Path(model.name_or_path))
    if found is None:
        text = (
            "task.json does not record the weights that the adapter was trained on, and "
            f"{model.name_or_path!r} is not there to compare with. Train it again to record them."
        )
        raise RecipeError([Problem(flag, text)])
    return recorded | {"sha256": found}


def publish_base(model: Model, recorded: dict[str, Any], repo: str, *, public: bool) -> str:
    """Publish the folder that an adapter was trained on; return its id and commit."""
    folder = Path(model.name_or_path)
    if not folder.is_dir():
        text = (
            f"the adapter's base, {model.name_or_path!r}, is not here. Use this command in the "
            "folder where the run was started, or --base for a base that is on the Hub."
        )
        raise RecipeError([Problem("with_base", text)])
    if not (folder / "task.json").is_file():
        text = (
            f"{folder} is a checkpoint without recipe.json and task.json, which no card can be "
            f"written for. Upload it with `hf upload {repo} {folder}`, with the card and licence "
            f"that it came with, and use --base {repo}."
        )
        raise RecipeError([Problem("with_base", text)])
    found = weights_sha256(checkpoint_folder(model))
    if found != recorded["sha256"]:
        raise RecipeError([other_weights("with_base", str(folder), found, recorded)])
    return f"{repo}@{publish(folder, repo, public=public)}"


def base_on_hub(hub: Hub, name: str, revision: str | None, recorded: dict[str, Any]) -> Model:
    """Return a base of the Hub at its commit. Raise RecipeError for another one than recorded."""
    try:
        info = hub.ask(lambda api: api.model_info(name, revision=revision, files_metadata=True))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" at {revision!r}" if revision else ""
        text = f"{name!r}{at} is not on the Hub: {reason(error)}"
        raise RecipeError([Problem("base", text)]) from error
    model = Model(name_or_path=name, revision=info.sha)
    found = weights_on_hub(model, info)
    if found != recorded["sha256"]:
        raise RecipeError([other_weights("base", name, found, recorded)])
    check_base(model, recorded | {"revision": None}, weights=False)
    return model


def weights_on_hub(model: Model, info: ModelInfo) -> str | None:
    """Return the hash of a checkpoint's weights; they are downloaded if the Hub lists none."""
    listed = {each.rfilename: each.lfs for each in info.siblings or []}
    names = weight_files(listed)
    hashes = {name: lfs.sha256 for name in names if (lfs := listed[name]) is not None}
    if hashes and len(hashes) == len(names):
        return combined_sha256(hashes)
    return weights_sha256(fetch_checkpoint(model))


def other_weights(flag: str, name: str, found: str | None, recorded: dict[str, Any]) -> Problem:
    """Return the problem of a base with other weights."""
    return Problem(
        flag,
        f"the adapter was trained on weights with SHA-256 {recorded['sha256']}, but those of "
        f"{name} have {found}. Name the base that it was trained on.",
    )


def read_result(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return recipe and sidecar. Raise RecipeError for a folder that no finished run has left."""
    weights = "adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"
    needed = [name for name in ("recipe.json", "task.json") if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in weights):
        needed.append(weights[0])
    if needed:
        raise RecipeError([Problem(str(folder), f"has no {' and no '.join(needed)}.")])
    read_whole_result(folder, str(folder))
    recipe, sidecar = check_result(folder)
    # The run has recorded, in its own folder, how others may read the name of its data.
    source = replace(recipe.task.dataset, path=sidecar["dataset"]["path"])
    return replace(recipe, task=replace(recipe.task, dataset=source)), sidecar


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


def contents_of(folder: Path, recipe: Recipe, sidecar: dict[str, Any], repo: str) -> Contents:
    """Return what the repository is to hold; nothing is written into the result."""
    contents: Contents = {
        file.name: file
        for file in sorted(folder.iterdir())
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in FILES)
    }
    contents["recipe.json"] = recipe.to_json().encode()
    contents["README.md"] = model_card(recipe, sidecar, repo).encode()
    if "adapter_config.json" in contents and isinstance(recipe.model, Model):
        config = json.loads(read(contents["adapter_config.json"]))
        named = {
            "base_model_name_or_path": recipe.model.name_or_path,
            "revision": recipe.model.revision,
        }
        if config | named != config:
            contents["adapter_config.json"] = json_bytes(config | named)
    listed = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if isinstance(content, bytes)
        else sidecar["files"][name]
        for name, content in contents.items()
        if name not in NOT_LISTED
    }
    contents["task.json"] = json_bytes(sidecar | {"files": listed})
    return contents


def json_bytes(value: Any) -> bytes:
    """Return JSON as the files of a result have it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def size_of(content: Path | bytes) -> int:
    """Return the bytes of a file that is published."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def read(content: Path | bytes) -> bytes:
    """Return what a file that is published holds."""
    return content if isinstance(content, bytes) else content.read_bytes()


def check_contents(contents: Contents) -> None:
    """Raise RecipeError for a token or a path of this machine in what would be uploaded."""
    secrets = [token.encode() for token in (get_token(), os.environ.get("HF_TOKEN")) if token]
    folders = (Path.home(), Path.home().resolve(), Path.cwd())
    places = dict.fromkeys(str(path) for path in folders if len(path.parts) > 1)
    problems = []
    for name, content in sorted(contents.items()):
        if Path(name).suffix not in TEXT_SUFFIXES:
            continue
        data = read(content)
        if TOKEN.search(data) or any(secret in data for secret in secrets):
            problems.append(Problem(name, "holds a token of the Hub."))
        texts = list(texts_of(name, data))
        for place in places:
            if any(names_path(text, place) for text in texts):
                problems.append(Problem(name, f"holds a path of here, {place}."))
    if problems:
        raise RecipeError(problems)


def texts_of(name: str, data: bytes) -> Iterator[str]:
    """Yield the texts of a file that may name a path: of JSON, its strings."""
    if name in VOCABULARIES:
        return
    text = data.decode(errors="replace")
    if not name.endswith(".json"):
        yield text
        return
    try:
        value = json.loads(text)
    except ValueError:
        yield text
        return
    if name == "tokenizer.json" and isinstance(value, dict):
        value = {key: part for key, part in value.items() if key != "model"}  # the vocabulary
    yield from strings_of(value)


def strings_of(value: Any) -> Iterator[str]:
    """Yield every string among the values of a JSON document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings_of(part)


def names_path(text: str, place: str) -> bool:
    """Tell whether a text names `place` or something below it, and not just a part of a name."""
    begin, end = r"(?:(?<![\w.~/-])|(?<=://))", r"(?![\w-])(?!\.\w)"
    return re.search(begin + re.escape(place) + end, text) is not None


def upload(api: HfApi, contents: Contents, repo: str) -> str:
    """Commit the files, and leave out those of an earlier result; return the commit."""
    head = api.model_info(repo).sha
    stale = [
        path
        for path in files_of(api, repo, head)
        if path not in contents and any(fnmatch(path, pattern) for pattern in FILES)
    ]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, content) for name, content in sorted(contents.items())),
        *(CommitOperationDelete(path) for path in stale),
    ]
    try:
        commit = api.create_commit(
            repo, [*operations], commit_message="A result of gpt2-recipes", parent_commit=head
        )
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # huggingface_hub's, for a card that the Hub does not take
        raise RuntimeError(str(error)) from error
    return commit.oid


def files_of(api: HfApi, repo: str, revision: str | None) -> dict[str, RepoFile]:
    """Return the files of a repository by their paths."""
    items = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {item.path: item for item in items if isinstance(item, RepoFile)}


def arrived_changed(contents: Contents, there: dict[str, RepoFile]) -> list[str]:
    """Return the files that the repository does not hold as they are here, by their hashes."""
    return [
        name
        for name, content in sorted(contents.items())
        if name not in there or not is_same(content, there[name])
    ]


def is_same(content: Path | bytes, file: RepoFile) -> bool:
    """Compare with a file of the Hub by the hash that it has: SHA-256 for LFS, else git's."""
    if file.lfs is None:
        data = read(content)
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == file.blob_id
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest() == file.lfs.sha256
    with content.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.lfs.sha256


def check_afterwards(hub: Hub, repo: str, *, public: bool, gated: bool) -> str | None:
    """Return what somebody has changed of the repository since it was checked, or None.

    A repository that was to be private and is public now is made private again.
    """
    try:
        info = hub.ask(lambda api: api.model_info(repo))
    except RepositoryNotFoundError:
        return f"{repo} was deleted, or hidden from this account, while it was published to"
    if info.id.lower() != repo.lower():
        return f"{repo} was renamed to {info.id} while it was published to"
    if bool(info.gated) and not gated:
        return f"{repo} was gated while it was published to: others have to ask for access"
    if public and info.private:
        return f"{repo} was made private while it was published to"
    if not public and not info.private:
        hub.ask(lambda api: api.update_repo_settings(repo, private=True))
        if not hub.ask(lambda api: api.model_info(repo)).private:
            return f"{repo} was made public while it was published to, and STILL IS PUBLIC"
        console().print(
            f"{repo} was made public while it was published to; it is private again. Whoever "
            "looked in between may have seen the result.",
            style="bold yellow",
            markup=False,
        )
    return None


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
