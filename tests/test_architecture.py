"""The rules of the house: imports go one way, and a task decides what depends on it."""

import ast
import re
from pathlib import Path

import pytest

from helpers.factories import ROOT

PACKAGE = ROOT / "pipelines"
LAYERS = (
    "__main__",
    "cli",
    "train",
    "selftest",
    "recipe_cli",
    "flow",
    "finished",
    "evaluation",
    "inference",
    "training",
    "hub",
    "results",
    "reporting",
    "models",
    "recipe",
    "tasks",
    "metrics",
    "data",
    "hub_client",
    "console",
    "process",
    "terminal",
    "shipped",
    "abandonable",
    "log",
    "errors",
)
"""Files and folders of the package; each imports only those below it."""
LONGEST = 50  # lines of a function
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """Return the dotted name of a file below the package's own."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__").removesuffix("__init__")


MODULES = {module_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def imported(tree: ast.Module) -> set[str]:
    """Return the modules of the package that a module imports, lazily or for types too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names if each.name.startswith("pipelines.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipelines"):
            for each in node.names:
                name = f"{node.module}.{each.name}"
                is_module = name.removeprefix("pipelines.") in MODULES
                found.add(name if is_module else str(node.module))
    return {name.removeprefix("pipelines.") for name in found} - {"pipelines"}


GRAPH = {name: imported(tree) for name, tree in MODULES.items()}


def test_no_module_imports_the_public_names():
    """They are for users: through them a module could import what lies above it."""
    found = [
        f"{name}: {each.name}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "pipelines"
        for each in node.names
        if each.name not in MODULES
    ]
    assert found == []


def test_every_file_and_folder_has_a_place_among_the_layers():
    top = {name.split(".")[0] for name in MODULES if name}
    assert top == set(LAYERS)


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name))
def test_imports_go_down(name):
    own = name.split(".")[0]
    others = {other.split(".")[0] for other in GRAPH[name]} - {own}
    assert [each for each in others if LAYERS.index(each) <= LAYERS.index(own)] == []


def test_no_import_leads_back_to_its_module():
    order: list[str] = []
    state: dict[str, str] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != "open", f"circle: {' -> '.join((*path, name))}"
        if name in state:
            return
        state[name] = "open"
        for other in sorted(GRAPH.get(name, ())):
            visit(other, (*path, name))
        state[name] = "done"
        order.append(name)

    for name in GRAPH:
        visit(name, ())


def test_functions_fit_on_a_screen():
    long = [
        f"{name}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > LONGEST
    ]
    assert long == []


def test_what_depends_on_the_task_is_asked_of_the_task():
    asks = re.compile(r"isinstance\((\w+\.)*task\b|auto_class\s*[=!]=")
    found = [
        f"{module_of(file)}: {line.strip()}"
        for file in FILES
        if not module_of(file).startswith("tasks")
        for line in file.read_text(encoding="utf-8").splitlines()
        if asks.search(line)
    ]
    assert found == []
