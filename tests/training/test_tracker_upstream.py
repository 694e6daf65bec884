"""Trackio still asks for the account where it is kept from doing so."""

import inspect

import pytest

from pipelines.training.tracker_checks import is_installed
from pipelines.training.tracker_upstream import without_account

pytestmark = pytest.mark.skipif(not is_installed("trackio"), reason="trackio is not installed")


def test_trackio_takes_the_account_from_the_function_that_is_replaced(monkeypatch):
    from trackio import run

    assert "_get_default_namespace()" in inspect.getsource(run.Run._get_username)
    monkeypatch.setattr(run, "_get_default_namespace", lambda: "jo")
    assert run.Run._get_username(None) == "jo"
    with without_account():
        assert run.Run._get_username(None) is None
    assert run.Run._get_username(None) == "jo"
