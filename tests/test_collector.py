"""The garbage collector runs rarely while the libraries are imported, and as usual afterwards."""

import gc

import pytest

import pipelines
from pipelines.collector import RARE, USUAL
from pipelines.process import prepare_process
from pipelines.terminal import report_errors


@pytest.fixture(autouse=True)
def as_usual():
    """Begin with the thresholds of Python."""
    gc.set_threshold(*USUAL)
    yield
    gc.set_threshold(*USUAL)


def test_a_command_collects_rarely_until_the_process_is_prepared():
    with report_errors():
        assert gc.get_threshold() == RARE
        with prepare_process():
            assert gc.get_threshold() == USUAL
    assert gc.get_threshold() == USUAL


def test_a_command_that_is_refused_leaves_the_collector_as_it_was():
    with pytest.raises(SystemExit), report_errors():
        raise pipelines.RecipeError([])
    assert gc.get_threshold() == USUAL


def test_a_public_name_is_imported_with_few_collections(monkeypatch):
    found = []
    monkeypatch.setattr(pipelines, "import_module", lambda name: found.append(gc.get_threshold()))
    with pytest.raises(AttributeError):
        pipelines.__getattr__("run")
    assert found == [RARE]
    assert gc.get_threshold() == USUAL
