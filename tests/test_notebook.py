"""The notebook runs from top to bottom in a clone, and is kept without outputs."""

import json
import shutil
import subprocess

import pytest

from helpers.factories import ROOT
from helpers.hub_process import SECRET, environment

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def test_the_notebook_is_valid_and_without_outputs():
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
            compile(cell.source, cell.id, "exec")
    path = NOTEBOOK.relative_to(ROOT).as_posix()
    assert f"/blob/main/{path})" in notebook.cells[0].source
    assert json.loads(NOTEBOOK.read_text())["metadata"]["accelerator"] == "GPU"


def test_the_notebook_runs_from_top_to_bottom_and_publishes(hub, tmp_path):
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    import nbformat

    clone = tmp_path / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."],
        cwd=ROOT, capture_output=True, check=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(("notebooks/", "pipelines/", "recipes/", "scripts/", "accel")):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
    notebook = nbformat.read(clone / "notebooks" / NOTEBOOK.name, as_version=4)
    variables = environment(hub, tmp_path / "home") | {
        "QUICKSTART_STEPS": "2",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
    }
    del variables["PYTHONPATH"]
    client = nbclient.NotebookClient(
        notebook, timeout=200, resources={"metadata": {"path": str(clone / "notebooks")}}
    )
    client.execute(env=variables)
    shown = {
        cell.id: "".join(each.text for each in cell.outputs if each.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert "4,000 rows" in shown["data"]
    assert "accuracy" in shown["evaluate"]
    assert len(shown["predict"].splitlines()) == 2
    assert {"local/helpdesk-pretrain", "local/helpdesk-classify-lora-8bit"} <= {
        name for _, name in hub.repos
    }
    assert SECRET not in json.dumps(shown)
    assert (clone / "runs/helpdesk-classify-lora-8bit/report.html").is_file()
