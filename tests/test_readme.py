"""What the README and the pages that it links to say is real: commands, names, links."""

import ast
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import tyro
import yaml

import pipelines
from helpers.documents import (
    PAGES,
    README,
    anchors_of,
    blocks_of,
    commands_of,
    links_of,
    text_of,
)
from helpers.factories import ROOT, load_module
from pipelines.cli.main import VERBS, WITH_RECIPE
from pipelines.cli.training import launcher_flags
from pipelines.recipe.recipe import Recipe
from pipelines.recipe_cli import MachineFlags, PlanFlags, RepeatFlags
from pipelines.search.plan import make_plan, split_flags

DOCS = ROOT / "docs"
PACKAGE = ROOT / "pipelines"
COMMANDS = [
    command for page in PAGES for block in blocks_of(page, "bash") for command in commands_of(block)
]
OWN = [command for command in COMMANDS if command.startswith("gpt2-recipes ")]
SCORED = [command for block in blocks_of(DOCS / "scores.md", "") for command in commands_of(block)]


def recipe_with(recipe: str, flags: list[str]) -> Recipe:
    """Return a recipe with flags in place of its values."""
    default = load_module(ROOT / recipe).RECIPE
    return tyro.cli(Recipe, default=default, args=flags, config=(tyro.conf.AvoidSubcommands,))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_files_and_flags_that_exist(command):
    words = shlex.split(command)
    files = [w for w in words if w.startswith(("recipes/", "scripts/", "accelerate_configs/"))]
    made = [w for w in files if words[words.index(w) - 1] == "--curves"]
    for file in files:
        assert file in made or (ROOT / file).is_file(), file
    recipes = [i for i, word in enumerate(words) if word.startswith("recipes/")]
    if recipes and "--help" not in words:
        flags = words[recipes[0] + 1 :]
        if words[:2] == ["gpt2-recipes", "train"]:
            flags = launcher_flags(flags, MachineFlags)[1]
        elif words[:2] == ["gpt2-recipes", "plan"]:
            flags = launcher_flags(flags, PlanFlags)[1]
        elif words[:2] == ["gpt2-recipes", "repeat"]:
            flags = launcher_flags(flags, RepeatFlags)[1]
        elif words[:2] == ["gpt2-recipes", "search"]:
            search_flags, others = split_flags(launcher_flags(flags)[1])
            recipe = load_module(ROOT / words[recipes[0]]).RECIPE
            assert make_plan(recipe, search_flags, others).parameters
            return
        assert isinstance(recipe_with(words[recipes[0]], flags), Recipe)


@pytest.mark.parametrize("command", SCORED)
def test_the_command_of_a_score_names_a_recipe_and_its_flags(command):
    name, *flags = shlex.split(command)
    assert isinstance(recipe_with(f"recipes/{name}.py", flags), Recipe)


def test_the_recipe_shown_is_the_recipe():
    (shown,) = (b for b in blocks_of(DOCS / "recipes.md", "python") if b.startswith("RECIPE = "))
    assert shown.strip() in (ROOT / "recipes" / "gpt2_sst2_lora_8bit.py").read_text()


@pytest.mark.parametrize(
    ("folder", "pattern", "page"),
    [("recipes", "*.py", "recipes.md"), ("accelerate_configs", "*.yaml", "machines.md")],
)
def test_every_recipe_and_config_is_listed(folder, pattern, page):
    for path in (ROOT / folder).glob(pattern):
        assert path.stem in text_of(DOCS / page), path.name


@pytest.mark.parametrize("command", OWN)
def test_a_command_has_the_verb_and_flags_that_it_shows(command):
    _, verb, *words = shlex.split(command)
    assert verb in VERBS
    if verb in WITH_RECIPE:  # the other flags are the recipe's, see above
        words = words[:1]
    parsed = tyro.extras.get_parser(VERBS[verb]).parse_args(words)
    assert parsed is not None


def test_a_flag_that_is_not_there_is_seen():
    with pytest.raises(SystemExit):
        tyro.extras.get_parser(VERBS["predict"]).parse_args(["a", "b", "--outt", "c"])


def test_the_recipe_in_python_is_valid():
    _, lines = blocks_of(README, "python")
    values: dict = {}
    exec(lines.removesuffix("metrics = run(recipe)\n"), values)
    assert isinstance(values["recipe"], Recipe)
    assert callable(values["run"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    broken = []
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_a_link_that_leads_nowhere_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading, `quoted`\n[a](#one-heading-quoted) [b](#other) [c](https://x)\n"
    )
    assert links_of(page) == ["#one-heading-quoted", "#other"]
    assert anchors_of(page) == {"one-heading-quoted"}


def test_the_readme_links_every_page():
    linked = {(README.parent / link.partition("#")[0]).resolve() for link in links_of(README)}
    reached = linked | {
        (page.parent / link.partition("#")[0]).resolve()
        for page in linked & set(PAGES)
        for link in links_of(page)
    }
    assert {page for page in PAGES if page.parent == DOCS} <= reached


def test_the_table_of_stock_libraries_is_what_its_script_prints(commands):
    script = [commands.python, str(ROOT / "scripts" / "stock_traps.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    table = done.stdout.splitlines()
    assert len(table) == 2 + 9
    assert done.stdout.strip() in text_of(DOCS / "comparison.md")
    assert "\n".join(table[:7]) in text_of(README)


def strings_of_the_package() -> str:
    """Return every text in the code of the package, whole or between the values of an f-string."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return "\n".join(
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def messages_of(page: Path) -> list[str]:
    """Return the quoted messages of a page: the code in the first column of its tables."""
    return re.findall(r"^\| (?:`` ?|`)(.+?) ?`+ \|", text_of(page), re.MULTILINE)


def test_each_message_of_the_troubleshooting_page_is_one_of_the_code():
    messages, texts = messages_of(DOCS / "troubleshooting.md"), strings_of_the_package()
    assert len(messages) > 40
    parts = [part.strip() for message in messages for part in message.split("…")]
    assert [part for part in parts if part not in texts] == []


def test_the_api_page_has_every_public_name():
    shown = re.findall(r"^::: pipelines\.(\w+)$", text_of(DOCS / "api.md"), re.MULTILINE)
    assert sorted(shown) == sorted(pipelines.__all__)


def test_the_site_has_every_page():
    nav = text_of(ROOT / "mkdocs.yml").partition("\nnav:\n")[2]
    assert sorted(re.findall(r"- ([\w-]+\.md)", nav)) == sorted(p.name for p in DOCS.glob("*.md"))


def test_the_index_links_every_page():
    linked = {link.partition("#")[0] for link in links_of(DOCS / "index.md")}
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


def test_the_image_installs_as_the_readme_says_and_copies_what_is_there():
    dockerfile = text_of(ROOT / "Dockerfile").replace("\\\n", " ")
    install = "\n".join(block for block in blocks_of(README, "bash") if "pip install" in block)
    assert " && ".join(commands_of(install)) in dockerfile
    copied = [
        word
        for line in re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    ignored = text_of(ROOT / ".dockerignore").splitlines()
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored
    assert {"pipelines", "recipes", "accelerate_configs", "pyproject.toml", "setup.py"} <= {*copied}


def test_the_citation_has_the_version_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]


def test_no_command_is_hidden_by_its_fence():
    for page in PAGES:
        assert text_of(page).count("```") % 2 == 0, page.name
        assert not re.search(r"^```(sh|shell|console)\b", text_of(page), re.MULTILINE), page.name
