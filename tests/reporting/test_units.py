"""Times as people read them."""

import pytest

from pipelines.reporting.units import clock, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.26, "8.3 s"),
        (34.8, "35 s"),
        (59.6, "1 min 0 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_a_duration_has_the_two_largest_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3725, "1:02:05")]
)
def test_a_clock_counts_minutes_and_hours(seconds, text):
    assert clock(seconds) == text
