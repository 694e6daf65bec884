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
    "compression",
    "doctor",
    "repeat",
    "search",
    "run_here",
    "recipe_list",
    "recipe_show",
    "scaffold",
    "planning",
    "tokenize",
    "train",
    "selftest",
    "recipe_cli",
    "flow",
    "final_score",
    "finished",
    "inputs",
    "samples",
    "html_report",
    "evaluation",
    "demo",
    "serving",
    "exporting",
    "inference",
    "training",
    "hub",
    "preparing",
    "results",
    "reporting",
    "models",
    "recipe",
    "tasks",
    "metrics",
    "data",
    "hub_client",
    "addresses",
    "console",
    "process",
    "collectives_upstream",
    "terminal",
    "flags",
    "flags_upstream",
    "shipped",
    "paths",
    "abandonable",
    "collector",
    "log",
    "parallel",
    "workers",
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


OWN_NAMES = {
    name
    for module, tree in MODULES.items()
    if not module.endswith("upstream")
    for node in ast.walk(tree)
    for name in (
        getattr(node, "name", None),  # of functions and classes
        node.attr if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) else None,
        node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None,
    )
    if name is not None
}
"""Names that the package itself defines, outside the files of private names."""
ALLOWED_PRIVATE = {
    # os documents it: the way to end a process without its threads and handlers
    ("abandonable", "_exit"),
    ("training.signals", "_exit"),
}
NEEDS = {"training.zero_update": "deepspeed"}
"""Modules that an extra has to be installed for."""
ALLOWED_PATCHES = {
    # A documented setting of torch
    ("process", "backend.matmul.fp32_precision"),
    # Breaks writes on purpose, in a process of its own
    ("selftest", "torch.save"),
    ("selftest", "module.serialize_file"),
}


def private_names(tree: ast.Module) -> set[str]:
    """Return the private attributes that a module reads, calls or sets and that are not ours."""
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    used |= {each.name for node in imports for each in node.names}
    used |= {part for node in imports for part in (node.module or "").split(".")}
    private = re.compile(r"_[a-z]\w*")
    return {name for name in used if private.fullmatch(name)} - OWN_NAMES


def dotted(node: ast.expr) -> str:
    """Return an attribute as it is written, "" for what is no chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def is_import(node: ast.expr, bound: set[str]) -> bool:
    """Tell whether an expression is a module, or a part of one."""
    if isinstance(node, ast.Call):
        return dotted(node.func).endswith("import_module")
    return dotted(node).split(".")[0] in bound


def patches(tree: ast.Module) -> set[str]:
    """Return what a module assigns to attributes of what it imports from elsewhere."""
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {(each.asname or each.name).split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("pipelines"):
            bound |= {each.asname or each.name for each in node.names}
    bound -= {"sys", "os"}  # argv and the environment are to be set
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and node.value and is_import(node.value, bound):
                    bound.add(target.id)  # another name of the same module
        elif isinstance(node, ast.Call) and dotted(node.func) == "setattr":
            owner, name = node.args[:2]
            if is_import(owner, bound):
                found.add(f"{dotted(owner)}.{ast.literal_eval(name)}")
    for node in ast.walk(tree):
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if stored and is_import(node.value, bound):
            found.add(dotted(node))
    return found


def test_private_names_of_the_libraries_are_in_upstream_files_only():
    used = {
        (name, private)
        for name, tree in MODULES.items()
        if not name.endswith("upstream")
        for private in private_names(tree)
    }
    assert used == ALLOWED_PRIVATE


def test_libraries_are_patched_in_upstream_files_only():
    patched = {
        (name, patch)
        for name, tree in MODULES.items()
        if not name.endswith("upstream")
        for patch in patches(tree)
    }
    assert patched == ALLOWED_PATCHES


@pytest.mark.parametrize(
    ("code", "private"),
    [
        ("super()._save_checkpoint(model, None)", "_save_checkpoint"),
        ("self._prepare_inputs(batch)", "_prepare_inputs"),
        ("from torch._inductor import config", "_inductor"),
        ("def _clip_grad_norm(self, model): return self._clip_grad_norm(model)", "_clip_grad_norm"),
    ],
)
def test_a_private_name_is_noticed(code, private):
    assert private in private_names(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.save = print",
        "from transformers import modeling_utils\nm: object = modeling_utils\nm.safe_open = print",
        "import importlib\nbase = importlib.import_module('evaluate')\nbase.load = print",
        "import torch\nsetattr(torch, 'save', print)",
    ],
)
def test_a_patch_is_noticed(code):
    assert patches(ast.parse(code))


def test_no_class_overrides_a_private_method_outside_upstream_files():
    import importlib.util

    overridden = []
    for name in MODULES:
        if not name.startswith(("training", "models")) or name.endswith("upstream"):
            continue
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            continue
        module = importlib.import_module(f"pipelines.{name}")
        for kind in vars(module).values():
            if not isinstance(kind, type) or kind.__module__ != module.__name__:
                continue
            others = [b for b in kind.__mro__ if not b.__module__.startswith("pipelines")]
            overridden += [
                f"{name}.{kind.__name__}.{attribute}"
                for attribute in vars(kind)
                if re.fullmatch(r"_[a-z]\w*", attribute)
                and any(attribute in vars(base) for base in others)
                and attribute not in ("_abc_impl", "_backward_cls")  # of metaclasses
            ]
    assert overridden == []
