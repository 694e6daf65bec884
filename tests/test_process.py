"""Warnings of the libraries are shown, but for those that say nothing about a run."""

import io
import logging
import platform

import pytest
import torch
from transformers.utils import logging as transformers_logging

from helpers.factories import ROOT
from pipelines.planning.peak import resident_memory
from pipelines.process import (
    FALSE_ALARMS,
    FALSE_ALARMS_LOGGED,
    disable_malloc_trim,
    quiet_libraries,
    restore_malloc_trim,
    trimming_memory,
)


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


@pytest.fixture
def keeping_freed_memory():
    """The allocator of a run on a CPU."""
    disable_malloc_trim()
    yield
    restore_malloc_trim()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_a_phase_begins_and_ends_without_what_was_freed(keeping_freed_memory):
    def hold():
        """Return a small tensor above 200 MB that are freed, and the memory next to them."""
        large = torch.ones(50_000_000)
        return torch.ones(1000), resident_memory(), large.nbytes

    _above, before, size = hold()
    assert resident_memory() > before - size / 2  # kept for the next tensor
    with trimming_memory():
        assert resident_memory() < before - size / 2
        _above_too, inside, size = hold()
        assert resident_memory() > inside - size / 2
    assert resident_memory() < inside - size / 2
