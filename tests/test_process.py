"""Warnings of the libraries are shown, but for those that say nothing about a run."""

import io
import logging

import pytest
from transformers.utils import logging as transformers_logging

from helpers.factories import ROOT
from pipelines.process import FALSE_ALARMS, FALSE_ALARMS_LOGGED, quiet_libraries


@pytest.fixture
def shown(monkeypatch):
    """What transformers' handler writes."""
    transformers_logging.get_logger()
    handler = logging.getLogger("transformers").handlers[0]  # pytest adds others
    stream = io.StringIO()
    monkeypatch.setattr(handler, "stream", stream)
    return stream


def test_false_alarms_are_dropped_and_warnings_are_not(shown):
    logger = transformers_logging.get_logger("transformers.any")
    with quiet_libraries():
        with quiet_libraries():  # as where a run publishes
            logger.warning("Some weights are not right.")
        for part in FALSE_ALARMS_LOGGED:
            logger.warning("\033[1mBefore\033[0m %s and after", part)
    assert shown.getvalue() == "[transformers] Some weights are not right.\n"
    logger.warning(FALSE_ALARMS_LOGGED[0])
    assert FALSE_ALARMS_LOGGED[0] in shown.getvalue()


@pytest.mark.parametrize("part", [*FALSE_ALARMS, *FALSE_ALARMS_LOGGED])
def test_every_false_alarm_is_documented(part):
    assert part in (ROOT / "docs/progress.md").read_text(encoding="utf-8")
