"""Check, before hours of training, that a result can be published to its repository."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from huggingface_hub import HfApi, constants, hf_hub_url, is_offline_mode
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipelines.data.local_files import is_path
from pipelines.errors import Problem, RecipeError
from pipelines.hub_client.client import Hub, reason, status_of
from pipelines.hub_client.transport import HubError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.rules import wrong_repo_id
from pipelines.recipe.values import Model


def check_destination(recipe: Recipe, repo: str, *, public: bool, flag: str = "push_to") -> None:
    """Check that a result can be published to `repo`; create the repository if it is missing.

    `flag` is what the user typed the name after. Raise RecipeError for what would fail after the
    training, and when the Hub does not answer.
    """
    hub = Hub()
    try:
        problems = destination_problems(hub, recipe, repo, public=public, flag=flag)
    except HubError as error:
        problems = [Problem(flag, str(error))]
    except HfHubHTTPError as error:
        problems = [Problem(flag, f"{constants.ENDPOINT} refuses: {reason(error)}")]
    if problems:
        raise RecipeError(problems)


def destination_problems(
    hub: Hub, recipe: Recipe, repo: str, *, public: bool, flag: str
) -> list[Problem]:
    """Return what is wrong with the name, the account, the base or the repository.

    A repository that is missing is created last, if nothing is wrong. Problems of the repository
    are named by `flag`, as the user typed it.
    """
    problems = (
        list(name_problems(repo))
        or list(account_problems(hub, repo))
        or list(base_problems(hub, recipe, public=public))
        or list(ensure_repository(hub, repo, public=public))
    )
    return [replace(each, path=flag) if each.path == "push_to" else each for each in problems]


def name_problems(repo: str) -> Iterator[Problem]:
    """Yield why `repo` cannot be the id of a repository of a user."""
    problems = list(wrong_repo_id(repo))
    yield from problems
    if not problems:
        try:
            hf_hub_url(repo, "README.md")  # checks the name, without a request
        except HFValidationError as error:
            yield Problem("push_to", f"the Hub does not allow this name. {error}")


def account_problems(hub: Hub, repo: str) -> Iterator[Problem]:
    """Yield why this account may not write to the owner of `repo`."""
    if is_offline_mode():
        yield Problem("push_to", "HF_HUB_OFFLINE is set.")
        return
    owner = repo.split("/")[0]
    try:
        user, roles, token_role = hub.ask(account)
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
    if token_role == "read":
        yield Problem("push_to", "the token may only read. Use one that may write.")


def account(api: HfApi) -> tuple[str, dict[str, str | None], str | None]:
    """Return the user, its role in each of its organizations, and the role of the token."""
    answer = api.whoami()
    roles = {org["name"]: org.get("roleInOrg") for org in answer["orgs"]}
    return answer["name"], roles, answer.get("auth", {}).get("accessToken", {}).get("role")


def base_problems(hub: Hub, recipe: Recipe, *, public: bool) -> Iterator[Problem]:
    """Yield why others could not load an adapter's base."""
    if recipe.lora is None or not isinstance(recipe.model, Model):
        return
    name, revision = recipe.model.name_or_path, recipe.model.revision
    if is_path(name):
        yield Problem(
            "model.name_or_path",
            f"{name!r} is a folder of this machine, from which nobody else can load it. Either "
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
        yield Problem("model.name_or_path", f"the base {name!r} is not a Hub id.")
        return
    if public and info.private:
        yield Problem("public", f"the base {name} is private, so others cannot load it.")


def ensure_repository(
    hub: Hub, repo: str, *, public: bool, kind: Literal["model", "space"] = "model"
) -> Iterator[Problem]:
    """Create `repo` if it is missing; yield why it cannot be, or is not as private as requested."""
    options: dict[str, Any] = {"space_sdk": "gradio"} if kind == "space" else {}
    options |= {"repo_type": kind, "private": not public, "exist_ok": True}
    try:
        info = hub.ask(lambda api: api.repo_info(repo, repo_type=kind))
    except RepositoryNotFoundError:
        try:
            hub.ask(lambda api: api.create_repo(repo, **options))
        except HfHubHTTPError as error:
            yield Problem("push_to", f"{repo} cannot be created: {reason(error)}")
            return
        info = hub.ask(lambda api: api.repo_info(repo, repo_type=kind))
    if info.id.lower() != repo.lower():
        yield Problem("push_to", f"{repo} is now called {info.id}. Publish to that.")
    elif info.private and public:
        yield Problem(
            "public", f"{repo} is private. Change that in its settings, or omit --public."
        )
    elif not info.private and not public:
        yield Problem("push_to", f"{repo} is public. Use --public to publish for everybody.")
