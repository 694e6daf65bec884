"""`gpt2-recipes repeat`: run a recipe once for each of several seeds.

Only the seed of the training changes, so that all results are scored on the same rows. The runs are
in one process, or in the same processes, which import everything once. Imports torch only to run.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe_cli import RepeatFlags, parse, print_help
from pipelines.results.files import update_manifest, write_whole
from pipelines.shipped import find_file
from pipelines.terminal import report_errors
from pipelines.train import Launcher, load_recipe
from pipelines.training.identity import comparable
from pipelines.training.tracker_checks import check_trackers

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from pipelines.training.ranks import Ranks

MOST_SEEDS = 100
TOO_LARGE = 2**32  # for NumPy's generator
TO_OVERWRITE = ".overwrite"  # in a seed's folder: its result is to be replaced, by this recipe


def repeat(recipe: str, flags: Sequence[str], launch_flags: RepeatFlags) -> None:
    """Run a recipe with its flags for each seed, and end with the exit code of its runs.

    Raise RecipeError as `train` does, and for seeds that cannot be.
    """
    file = find_file(recipe, "recipes", field="RECIPE")
    launcher = Launcher.of(launch_flags)
    if {"-h", "--help"} & set(flags):
        print_help(load_recipe(file), f"gpt2-recipes repeat {recipe}", RepeatFlags)
        return
    arguments = [str(file), launch_flags.seeds, *flags]
    launcher.check_machines()
    recipes = parse_repeated(arguments)  # before seconds of imports
    if launcher.needed:
        timeout = next(iter(recipes.values())).train.ddp_timeout
        launcher.start("pipelines.repeat", arguments, timeout)
    else:
        launcher.set_environment()
        run_seeds(recipes)


def parse_repeated(arguments: Sequence[str]) -> dict[int, Recipe]:
    """Return the recipe of each seed from a recipe's file, the text of the seeds, and flags."""
    file, seeds, *flags = arguments
    recipe = parse(load_recipe(Path(file)), [file, *flags])
    check_trackers(recipe.train.report_to)
    typed = any(flag.split("=")[0] == "--train.seed" for flag in flags)
    if "," in seeds and typed:
        text = f"{recipe.train.seed} contradicts --seeds {seeds}, which lists the seeds."
        raise RecipeError([Problem("train.seed", text)])
    return recipes_of(recipe, parse_seeds(seeds, first=recipe.train.seed))


def parse_seeds(text: str, *, first: int) -> tuple[int, ...]:
    """Return the seeds in a text such as 1,2,3; or as many as it says, from `first` on."""
    listed = "," in text
    words = [word.strip() for word in text.split(",")]
    problem = None
    if not all(word.isascii() and word.isdigit() for word in words):
        problem = f"{text!r} is neither a number of seeds, as 5, nor a list of them, as 1,2,3."
    elif listed and len(set(map(int, words))) < len(words):
        problem = f"{text} has a seed twice."
    elif listed and max(map(int, words)) >= TOO_LARGE:
        problem = f"{text} has a seed above {TOO_LARGE - 1:,}."
    elif listed and len(words) > MOST_SEEDS:
        problem = f"lists {len(words)} seeds; give 2 to {MOST_SEEDS}."
    elif not listed and not 2 <= int(words[0]) <= MOST_SEEDS:
        problem = f"{text} is out of range; give 2 to {MOST_SEEDS} seeds, or list them, as 1,2,3."
    if problem is not None:
        raise RecipeError([Problem("seeds", problem)])
    numbers = tuple(map(int, words))
    return numbers if listed else tuple(range(first, first + numbers[0]))


def recipes_of(recipe: Recipe, seeds: Sequence[int]) -> dict[int, Recipe]:
    """Return the recipe of each seed, with a folder of its own below that of the recipe.

    Raise RecipeError for a recipe that publishes.
    """
    if recipe.push_to is not None:
        text = "repeat makes several results and publishes none. Publish one of them afterwards, "
        text += f"as with gpt2-recipes publish {folder_of(recipe, seeds[0])} {recipe.push_to}."
        raise RecipeError([Problem("push_to", text)])
    return {
        seed: replace(
            recipe,
            train=replace(recipe.train, seed=seed),
            output_dir=str(folder_of(recipe, seed)),
        )
        for seed in seeds
    }


def folder_of(recipe: Recipe, seed: int) -> Path:
    """Return the folder of the result of a seed."""
    return recipe.folder / f"seed-{seed}"


@dataclass(frozen=True)
class SeedScores:
    """The primary metric of a recipe for each of its seeds, of which there are two or more."""

    metric: str
    values: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of a seed's score, with n - 1 in the denominator."""
        return statistics.stdev(self.values.values())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean over all seeds, by Student's t distribution."""
        from scipy.stats import t

        num_seeds = len(self.values)
        margin = float(t.ppf(0.975, num_seeds - 1)) * self.standard_deviation / num_seeds**0.5
        return self.mean - margin, self.mean + margin

    def to_json(self) -> dict[str, Any]:
        """Return what task.json of each result records."""
        return {
            "values": {str(seed): value for seed, value in self.values.items()},
            "mean": self.mean,
            "standard_deviation": self.standard_deviation,
            "interval": list(self.interval),
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.metric} of {len(self.values)} seeds: mean {self.mean:.4f} (95 % {low:.4f} to "
            f"{high:.4f}), standard deviation {self.standard_deviation:.4f}"
        )


def run_seeds(recipes: dict[int, Recipe], callbacks: Sequence[TrainerCallback] = ()) -> SeedScores:
    """Run the recipe of each seed, one after the other, and record in each result all scores.

    A seed whose result is finished is not trained again. `callbacks` are those of `run`. Raise what
    `run` raises: the seeds before are finished then.
    """
    from pipelines.console import say
    from pipelines.flow import run
    from pipelines.process import release_memory
    from pipelines.training.ranks import joined_ranks
    from pipelines.training.signals import StopAtSignal, StopSignals
    from pipelines.training.start import start_together

    values: dict[int, float] = {}
    metric = ""
    first = next(iter(recipes.values()))
    with StopSignals() as signals, joined_ranks(first.train.ddp_timeout) as ranks:
        start_together(ranks, first, seeds=list(recipes))  # before anything asks for the rank
        overwriting = seeds_to_overwrite(recipes, ranks)
        for number, (seed, recipe) in enumerate(recipes.items(), start=1):
            say(f"seed {seed}, {number} of {len(recipes)}:")
            metrics = run(replace(recipe, overwrite=seed in overwriting), callbacks)
            (recipe.folder / TO_OVERWRITE).unlink(missing_ok=True)
            metric = metrics["primary"]
            values[seed] = metrics[metric]
            release_memory()
            StopAtSignal(signals).check()
        scores = SeedScores(metric, values)
        record_scores(recipes, scores)
        ranks.wait()
    say(f"{recipe.name}: {scores}")
    return scores


def seeds_to_overwrite(recipes: dict[int, Recipe], ranks: Ranks) -> set[int]:
    """Return the seeds whose results are to be replaced, as --overwrite asks for.

    A command that was interrupted has replaced some already: the others are still marked. Rank 0
    decides for all.
    """
    if not any(recipe.overwrite for recipe in recipes.values()):
        return set()

    def decide() -> list[int]:
        marks = {seed: json.dumps(comparable(recipe)) for seed, recipe in recipes.items()}
        files = {seed: recipe.folder / TO_OVERWRITE for seed, recipe in recipes.items()}
        marked = {s for s, file in files.items() if file.is_file() and file.read_text() == marks[s]}
        if marked:
            return sorted(marked)
        for seed, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(marks[seed])
        return sorted(recipes)

    return set(ranks.from_first(decide))


def record_scores(recipes: dict[int, Recipe], scores: SeedScores) -> None:
    """Write the scores of all seeds to task.json of each result, and to seeds.json above them."""
    from accelerate import PartialState

    from pipelines.results.lock import lock_run_folder

    if PartialState().is_main_process:
        for recipe in recipes.values():
            with lock_run_folder(recipe.folder):
                update_manifest(recipe.folder, {"seeds": scores.to_json()})
        record = {"name": recipe.name, "metric": scores.metric, **scores.to_json()}
        record["folders"] = {str(seed): each.folder.name for seed, each in recipes.items()}
        write_whole(recipe.folder.parent / "seeds.json", record)


if __name__ == "__main__":
    with report_errors():
        run_seeds(parse_repeated(sys.argv[1:]))
