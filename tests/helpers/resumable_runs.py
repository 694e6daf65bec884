"""Short runs with checkpoints, and damage to them."""

import sys

from helpers.factories import ROOT, make_tasks, method
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train

TRAIN = Train(max_steps=6, learning_rate=1e-2, global_batch_size=8, save_steps=2, logging_steps=1)


def recipe_for(task, name, checkpoint, helpdesk, folder) -> Recipe:
    """Return a run of six steps with a checkpoint every two."""
    return Recipe(
        name="resumed",
        task=make_tasks(helpdesk)[task],
        model=Model(name_or_path=str(checkpoint)),
        train=TRAIN,
        output_dir=str(folder),
        **method(name, lora_dropout=0.1),
    )


def weights(folder) -> bytes:
    """Return the bytes of the result's weights."""
    [file] = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    return file.read_bytes()


def flip(file) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file) -> None:
    """Leave the first half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def command_for(recipe: Recipe, place, *calls: str) -> list[str]:
    """Write a recipe; return the command that runs it with callbacks of tests/helpers."""
    file = place / "recipe.json"
    file.write_text(recipe.to_json())
    return [sys.executable, str(ROOT / "tests/helpers/run_recipe.py"), str(file), *calls]


def script_for(recipe: Recipe, place) -> list[str]:
    """Write a recipe as a script; return the command that runs it."""
    file = place / "recipe.py"
    lines = "from pipelines.recipe_cli import main; from pipelines.recipe.recipe import Recipe; "
    file.write_text(f"{lines}main(Recipe.from_json({recipe.to_json()!r}))")
    return [sys.executable, str(file)]
