"""The public Python API: its names, and what importing them loads."""

import ast
import subprocess
import sys

import pytest

import pipelines
from helpers.factories import ROOT

PACKAGE = ROOT / "pipelines"
PARTS = [name for name in pipelines.__all__ if name[0].isupper()]
NEED_TORCH = {"Evaluation", "LoadedModel", "Merged"}


def imported_with(*names):
    """Return the heavy modules that a new process loads with these names."""
    script = ROOT / "tests" / "helpers" / "imported_modules.py"
    done = subprocess.run(
        [sys.executable, script, *names], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()


def test_the_parts_of_a_recipe_import_no_torch():
    assert imported_with(*set(PARTS) - NEED_TORCH, "main") == []


def test_every_name_is_there_and_seen_by_type_checkers_and_by_dir():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert sorted(typed) == sorted(pipelines.__all__)
    for name, (module, attribute) in typed.items():
        assert attribute == name
        assert getattr(pipelines, name) is getattr(sys.modules[module], name)
    assert set(pipelines.__all__) <= set(dir(pipelines))
    with pytest.raises(AttributeError, match="'pipelines' has no attribute 'Recip'"):
        _ = pipelines.Recip


def test_no_public_name_is_that_of_a_module():
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(pipelines.__all__)


@pytest.mark.parametrize("order", [("run", ".flow"), (".flow", "run")])
def test_run_is_the_function_whatever_is_imported_first(order):
    assert "torch" in imported_with(*order, "run")
