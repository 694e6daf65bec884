"""`gpt2-recipes new`: look at data, guess, say why, and write a recipe."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.data.rows import Examples
from pipelines.data.validate import drop_unusable, raise_rejected
from pipelines.errors import DataError, Problem, RecipeError
from pipelines.recipe.names import METHODS, TASK_NAMES, method_parts
from pipelines.recipe.python_source import names_in, to_python
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.rules import wrong_name
from pipelines.recipe.values import Scratch
from pipelines.scaffold.base_model import BaseModel, base_model
from pipelines.scaffold.columns import columns_of
from pipelines.scaffold.flags import NewFlags
from pipelines.scaffold.guess import Guess, guess_task
from pipelines.scaffold.hyperparameters import row_lengths, training, with_length
from pipelines.scaffold.look import Look, columns_in, look_at
from pipelines.shipped import find_file
from pipelines.tasks.base import Task
from pipelines.train import load_recipe

DEFAULT_MODEL = "openai-community/gpt2"
CHECKED_ROWS = 20_000
SHOWN = frozenset(
    (
        *("text_column", "label_column", "completion_column", "max_length", "block_size"),
        *("r", "lora_alpha", "learning_rate", "num_train_epochs", "global_batch_size", "size"),
    )
)
"""Fields that a written recipe has also where they are defaults: what is changed first."""


def new(name: str, flags: NewFlags) -> None:
    """Write a recipe for data, or a copy of a recipe, and print what was guessed.

    Raise RecipeError for wrong flags and for guesses that need one, DataError for unusable rows.
    """
    run_name, file = names_of(name, flags)
    if flags.source is not None:
        recipe, title, guesses = copied(run_name, flags)
    elif flags.data is None:
        text = "is needed: a file, a folder or a Hub id. Or copy a recipe with --from."
        raise RecipeError([Problem("data", text)])
    else:
        recipe, title, guesses = guessed(run_name, flags)
    for guess in guesses:
        print(guess)
    file.write_text(source_of(recipe, title, file), encoding="utf-8")
    print(f"\nWrote {file}. Change it as you like, then:")
    print(f"    gpt2-recipes plan {file}")
    print(f"    gpt2-recipes run {file}")


def names_of(name: str, flags: NewFlags) -> tuple[str, Path]:
    """Return the name of the run and the file of the recipe. Raise RecipeError for wrong ones."""
    stem = name.removesuffix(".py")
    if any(True for _ in wrong_name(stem)):
        text = f"{name!r} names no folder of a run: letters, digits, '.', '-' and '_' do. "
        raise RecipeError([Problem("NAME", f"{text}Choose where the file goes with --out.")])
    file = flags.out or Path(f"{stem}.py")
    if file.is_dir() or not file.parent.is_dir():
        raise RecipeError([Problem("out", f"{file} is a folder, or in none. Name a file.")])
    if file.exists() and not flags.overwrite:
        text = f"{file} exists. Choose another name, or replace the file with --overwrite."
        raise RecipeError([Problem("NAME" if flags.out is None else "out", text)])
    return stem.replace("_", "-"), file


def guessed(name: str, flags: NewFlags) -> tuple[Recipe, str, list[Guess]]:
    """Return the recipe for the data, a title, and the guesses."""
    assert flags.data is not None
    method, method_guess = method_of(flags)
    base = base_model(flags.model or DEFAULT_MODEL)
    columns_given = flags.text_column is not None and flags.label_column is not None
    read_hub = flags.task is None or not (columns_given or flags.task in ("pretrain", "prefer"))
    look = look_at(flags.data, flags.data_name, read_hub=read_hub)
    fit = guess_task(look, columns_of(look.rows), flags)
    if fit.task.needs_reference and isinstance(base.model, Scratch):
        text = f"{flags.model}: DPO tunes a pretrained model. Name its folder or Hub id."
        raise RecipeError([Problem("model", text)])
    if fit.task.needs_reference and method == "full":
        text = "full: DPO compares with the base without the adapter. Use --method lora."
        raise RecipeError([Problem("method", text)])
    usable, bad = usable_rows(fit.task, look)
    lengths = row_lengths(usable, fit, base)
    task, length = with_length(fit.task, lengths, base, look.num_rows)
    word = TASK_NAMES[type(task).__name__]
    rows = round(look.num_rows * (1 if look.source.eval_split else 0.9))
    if task.document_column is not None and lengths:
        rows = max(1, sum(lengths) * look.num_rows // len(lengths) // task.length)
    train, training_guess = training(word, method, base, rows, task.length)
    quantization, lora = method_parts(method)
    recipe = Recipe(
        name=name,
        task=task,
        model=base.model,
        quantization=quantization,
        lora=lora,
        train=train,
    )
    model = Guess("model", flags.model or DEFAULT_MODEL, base.why, "--model")
    data = Guess("data", look.source.path, look.description.partition(": ")[2])
    splits = Guess("splits", "", look.splits)
    guesses = [data, *fit.guesses, splits, *bad, model, method_guess, length, training_guess]
    return recipe, f"{word.capitalize()} on {look.source.path}.", guesses


def method_of(flags: NewFlags) -> tuple[str, Guess]:
    """Return the method, given or guessed. Raise RecipeError for an adapter of random weights."""
    is_scratch = (flags.model or "").partition(":")[0] == "scratch"
    if is_scratch and flags.method not in (None, "full"):
        text = f"{flags.method}: an adapter needs pretrained weights. Use --method full."
        raise RecipeError([Problem("method", text)])
    if flags.method is not None:
        return flags.method, Guess("method", flags.method, "given", "--method")
    if is_scratch:
        return "full", Guess("method", "full", "random weights are all trained")
    others = ", ".join(each for each in METHODS if each != "lora")
    return "lora", Guess("method", "lora", f"least to go wrong; others are {others}", "--method")


def usable_rows(task: Task, look: Look) -> tuple[Sequence[dict[str, object]], list[Guess]]:
    """Return the rows that the task can use, and a line about those that it cannot.

    Raise DataError where it can use none, and where its labels cannot be learned.
    """
    if look.examples is None:
        return (), []
    examples = look.examples
    first = examples.select(range(min(CHECKED_ROWS, look.num_rows))) if look.num_rows else examples
    checked: Examples = drop_unusable(task.resolved(first), first, None)
    usable = list(checked.rows)
    if not usable:
        raise_rejected(checked.rejected)
    task.labels(checked)
    num_bad = len(checked.rejected)
    if not num_bad:
        return usable, []
    worst = checked.rejected[0]
    why = f"the first is {worst.location}: {worst.reason[:120]}"
    flag = "--task.dataset.on-bad-row skip"
    return usable, [Guess("caution", f"{num_bad:,} rows stop the run", why, flag)]


def copied(name: str, flags: NewFlags) -> tuple[Recipe, str, list[Guess]]:
    """Return a recipe of another name, with the data and the model that are given."""
    assert flags.source is not None
    unused = ("task", "method", "text_column", "text_pair_column", "label_column")
    for field in unused:
        if getattr(flags, field) is not None:
            text = "does not go with --from: change the file that is written."
            raise RecipeError([Problem(field, text)])
    file = find_file(flags.source, "recipes", field="from")
    recipe = replace(load_recipe(file), name=name, output_dir=None, push_to=None)
    guesses = [Guess("copy of", str(flags.source), "with another name")]
    if flags.data is not None:
        look = look_at(flags.data, flags.data_name, read_hub=False)
        check_columns(recipe.task, look)
        recipe = replace(recipe, task=replace(recipe.task, dataset=look.source))
        guesses.append(Guess("data", look.source.path, look.description.partition(": ")[2]))
        guesses.append(Guess("splits", "", look.splits))
    if flags.model is not None:
        base = base_model(flags.model)
        recipe = with_model(recipe, base)
        guesses.append(Guess("model", flags.model, base.why))
    return recipe, title_of(file, recipe), guesses


def with_model(recipe: Recipe, base: BaseModel) -> Recipe:
    """Return a recipe that starts from another model, its rows no longer than that allows."""
    task = recipe.task.with_length(min(recipe.task.length, base.positions))
    model = base.model
    if isinstance(model, Scratch) and isinstance(recipe.model, Scratch):
        model = replace(recipe.model, size=model.size)
    return replace(recipe, task=task, model=model)


def check_columns(task: Task, look: Look) -> None:
    """Raise DataError if the rows lack a column of the task."""
    present = columns_in(look.rows)
    missing = [column for _, column in task.columns() if column not in present]
    if look.examples is not None and missing:
        text = f"{look.source.path}: no column {' or '.join(map(repr, missing))}, which the recipe "
        raise DataError(f"{text}names. Columns: {', '.join(present)}.")


def title_of(file: Path, recipe: Recipe) -> str:
    """Return the first line of a recipe's docstring, or a title for a recipe.json."""
    if file.suffix != ".json":
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        if text:
            return text.splitlines()[0]
    return f"A copy of the recipe {recipe.name}."


def source_of(recipe: Recipe, title: str, file: Path) -> str:
    """Return the Python file of a recipe, formatted as ruff formats it."""
    command = f"gpt2-recipes run {file}"
    names = sorted(names_in(recipe), key=lambda name: (not name.isupper(), name))
    imported = f"from pipelines import {', '.join([*names, 'main'])}"
    if len(imported) > 100:
        lines = "".join(f"    {name},\n" for name in [*names, "main"])
        imported = f"from pipelines import (\n{lines})"
    safe = title.replace("\\", "/").replace('"', "'")
    docstring = f'"""{safe}\n\n{command}\n"""'.replace("\\", "\\\\")
    body = to_python(recipe, "RECIPE = ", shown_for(recipe))
    ending = 'if __name__ == "__main__":\n    main(RECIPE)\n'
    return f"{docstring}\n\n{imported}\n\n{body}\n\n{ending}"


def shown_for(recipe: Recipe) -> frozenset[str]:
    """Return the fields to write in any case."""
    unused = {"label_column"} if getattr(recipe.task, "label_columns", ()) else set()
    unused |= set() if recipe.train.max_steps is None else {"num_train_epochs"}
    return SHOWN - unused
