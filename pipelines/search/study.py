"""The study of a search: opened or made, and compared with what the command asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from pipelines.errors import Problem, RecipeError
from pipelines.hub.pin import pin_revisions
from pipelines.preparing.rows import load_prepared
from pipelines.preparing.splits import check_prepared
from pipelines.preparing.store import Store
from pipelines.recipe.recipe import Recipe
from pipelines.search.locks import Lock
from pipelines.search.objective import Objective
from pipelines.search.parameters import Value
from pipelines.search.plan import Plan
from pipelines.search.samplers import pruner_of
from pipelines.search.storage import open_storage
from pipelines.training.identity import comparable, data_of, differences

NAME = "search"
IDENTITY, PINNED, DATA = "identity", "pinned_recipe", "data"


@dataclass(frozen=True)
class OpenStudy:
    """A study that is the plan's, and the recipe whose values its trials replace."""

    plan: Plan
    study: optuna.Study
    recipe: Recipe
    """The plan's recipe, with the commits that its names had when the study began."""

    @property
    def objective(self) -> Objective:
        """Return what trials are compared by."""
        return self.plan.objective

    @property
    def lock(self) -> Lock:
        """Return the lock that a worker has while it takes a trial."""
        return study_lock(self.plan.folder)

    def values_of(self, trial: FrozenTrial) -> dict[str, Value]:
        """Return the value of each parameter in a trial, by its path."""
        return {each.path: each.exact(trial.params[each.path]) for each in self.plan.parameters}

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.plan.folder / f"trial-{number:03d}"


def study_lock(folder: Path) -> Lock:
    """Return the lock of a study."""
    return Lock(folder / ".locks" / "study")


def open_study(plan: Plan) -> OpenStudy:
    """Open the study in the plan's folder, or make it.

    Raise RecipeError, naming what differs, for the study of another search or of other rows;
    DataError for rows that cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with study_lock(plan.folder):
        study = optuna.create_study(
            storage=open_storage(plan.folder, plan.flags.storage),
            study_name=NAME,
            direction="maximize" if plan.objective.greater_is_better else "minimize",
            pruner=pruner_of(plan.flags, plan.recipe.train.eval_steps or 1),
            load_if_exists=True,
        )
        check_same_search(plan, recorded(study, IDENTITY, lambda: identity_of(plan)))
        pinned = recorded(study, PINNED, lambda: pin_revisions(plan.recipe).to_json())
    recipe = Recipe.from_json(pinned)
    data = fingerprints(recipe)
    with study_lock(plan.folder):
        check_same_rows(plan, recorded(study, DATA, lambda: data), data)
    return OpenStudy(plan, study, recipe)


def recorded(study: optuna.Study, name: str, make: Callable[[], Any]) -> Any:
    """Return what the study has recorded by a name; if it has nothing, record and return it."""
    if name not in study.user_attrs:
        study.set_user_attr(name, make())
    return study.user_attrs[name]


def identity_of(plan: Plan) -> dict[str, Any]:
    """Return what two commands must have in common to share a study."""
    flags = plan.flags
    return {
        "recipe": comparable(plan.recipe),
        "space": {each.path: each.text for each in plan.parameters},
        "search": {
            "sampler": flags.sampler,
            "seed": flags.seed,
            "prune": flags.prune,
            "metric": plan.objective.name,
        },
    }


def fingerprints(recipe: Recipe) -> dict[str, str | None]:
    """Return the hashes of a recipe's rows. Raise DataError for rows that cannot be used."""
    store = Store()
    raw = load_prepared(recipe.task.dataset, store)
    splits, _ = check_prepared(recipe.task.resolved(raw.train), raw, None, store)
    return data_of(splits)


def check_same_search(plan: Plan, before: dict[str, Any]) -> None:
    """Raise RecipeError with every difference between a study and a command."""
    problems = [*other_values(plan, before, identity_of(plan))]
    if problems:
        text = f"{plan.folder} has the study of another search. Use another --output-dir."
        raise RecipeError([*problems, Problem("output_dir", text)])


def other_values(plan: Plan, before: dict[str, Any], now: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each difference, with the path of the field or the flag."""
    for path, was, value in differences(
        before["recipe"] | before["search"], now["recipe"] | now["search"]
    ):
        text = f"the study in {plan.folder} has {was!r}, this command has {value!r}."
        yield Problem(path, text)
    for path in sorted(before["space"].keys() | now["space"].keys()):
        was, text = before["space"].get(path), now["space"].get(path)
        if was != text:
            words = f"the study in {plan.folder} searches {was or 'one value'}, this command "
            yield Problem(path, f"{words}{text or 'one value'}.")


def check_same_rows(plan: Plan, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise RecipeError if the rows have changed since the study began."""
    changed = [path for path, *_ in differences(before, now)]
    if changed:
        text = f"the study in {plan.folder} has other rows: {', '.join(changed)} changed since it "
        text += "began. Bring the rows back, or use another --output-dir."
        raise RecipeError([Problem("task.dataset.path", text)])
