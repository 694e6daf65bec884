"""The README's commands and names are real."""

import inspect
import re
import shlex

import pytest
import tyro

from helpers.factories import ROOT, load_module
from pipelines.cli import launcher_flags
from pipelines.recipe.recipe import Recipe

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_files_and_flags_that_exist(command):
    words = shlex.split(command)
    files = [w for w in words if w.startswith(("recipes/", "scripts/", "accelerate_configs/"))]
    for file in files:
        assert (ROOT / file).is_file(), file
    recipes = [i for i, word in enumerate(words) if word.startswith("recipes/")]
    if recipes and "--help" not in words:
        recipe = load_module(ROOT / words[recipes[0]]).RECIPE
        flags = words[recipes[0] + 1 :]
        if words[:2] == ["gpt2-recipes", "train"]:
            flags = launcher_flags(flags)[1]
        config = (tyro.conf.AvoidSubcommands,)
        assert isinstance(tyro.cli(Recipe, default=recipe, args=flags, config=config), Recipe)


def test_the_recipe_shown_is_the_recipe():
    shown = re.search(r"```python\n(RECIPE = .*?)```", README, re.DOTALL)[1]
    assert shown.strip() in (ROOT / "recipes" / "gpt2_sst2_lora_8bit.py").read_text()


def test_every_recipe_and_config_is_listed():
    for path in [*(ROOT / "recipes").glob("*.py"), *(ROOT / "accelerate_configs").glob("*.yaml")]:
        assert path.stem in README, path.name


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("gpt2-recipes ")])
def test_a_command_has_the_verb_and_flags_that_it_shows(command):
    from pipelines import cli

    _, verb, *words = shlex.split(command)
    assert f'"{verb}": ' in inspect.getsource(cli.console)
    if verb == "train":  # the other flags are the recipe's, see above
        words = [word for word in words if word.startswith("recipes/")]
    parsed = tyro.extras.get_parser(vars(cli)[verb.replace("-", "_")]).parse_args(words)
    assert parsed is not None


def test_a_flag_that_is_not_there_is_seen():
    from pipelines import cli

    with pytest.raises(SystemExit):
        tyro.extras.get_parser(cli.predict).parse_args(["a", "b", "--outt", "c"])
