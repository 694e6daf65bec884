"""Charts: scales, ticks and bars, with positions worked out by hand."""

import pytest

from pipelines.html_report.charts import Axis, bar_chart, line_chart, scatter_chart, thinned


def test_an_axis_maps_its_ends_and_what_is_between():
    axis = Axis(0, 50, 52, 352)
    # 300 units for 50: 6 for each
    assert [axis(value) for value in (0, 10, 50)] == [52, 112, 352]
    upwards = Axis(0, 4, 180, 12)
    assert [upwards(value) for value in (0, 1, 4)] == [180, 138, 12]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 200, ["0", "50", "100", "150", "200"]),
        (0.13, 0.37, ["0.15", "0.20", "0.25", "0.30", "0.35"]),
        (-1, 1, ["-1.0", "-0.5", "0", "0.5", "1.0"]),
        (0, 2e-4, ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]),
        (8900, 9700, ["9,000", "9,200", "9,400", "9,600"]),
    ],
)
def test_ticks_are_round_numbers(low, high, labels):
    ticks = Axis(low, high, 0, 100).ticks
    assert [tick.label for tick in ticks] == labels
    assert all(0 <= tick.position <= 100 for tick in ticks)


def test_values_that_are_far_apart_have_a_logarithmic_axis():
    points = [(0, 10_000.0), (10, 100.0), (20, 10.0)]
    chart = line_chart("perplexity", {"": points}, log=True)
    assert [tick.label for tick in chart.y.ticks] == ["10", "100", "1,000", "10,000"]
    first, second, third = (dot.y for dot in chart.series[0].dots)
    # two powers of ten from the first to the second, one from the second to the third
    assert second - first == pytest.approx(2 * (third - second), abs=0.2)
    assert not line_chart("loss", {"": points}).y.log
    assert not line_chart("perplexity", {"": [(0, 30.0), (1, 20.0)]}, log=True).y.log


def test_lines_without_a_point_are_left_out_and_the_rest_is_told_in_words():
    chart = line_chart("Loss", {"training": [(1, 3.0), (2, 1.0), (3, 2.0)], "evaluation": []})
    assert [series.name for series in chart.series] == ["training"]
    assert chart.summary == (
        "training goes from 3 at step 1 to 2 at step 3; its lowest value is 1 (step 2), its "
        "highest 3 (step 1)."
    )
    assert chart.series[0].dots[1].title == "training, step 2: 1"
    assert line_chart("Loss", {"training": []}) is None


def test_one_point_and_equal_values_have_an_axis():
    chart = line_chart("Loss", {"": [(5, 0.0)]})
    assert chart.x.low < 5 < chart.x.high
    assert chart.y.low < 0 < chart.y.high
    assert chart.summary == "Loss is 0 at step 5."


def test_many_points_are_thinned_and_keep_their_ends():
    kept = thinned(range(1001), 101)
    assert list(kept) == list(range(0, 1001, 10))
    assert thinned([1, 2], 101) == [1, 2]


def test_predictions_over_targets_tell_their_mean_distance():
    chart = scatter_chart("Predictions", [(1.0, 2.0, "a:1"), (3.0, 3.0, "a:2")])
    assert "the mean distance between the two is 0.5" in chart.summary  # (1 + 0) / 2
    assert chart.series[0].dots[0].title == "a:1: target 1, predicted 2"
    # both axes have the same scale, so that equal values are on the diagonal
    dot, (x1, y1, x2, y2) = chart.series[0].dots[1], chart.diagonal
    assert (dot.x - x1) / (x2 - x1) == pytest.approx((dot.y - y1) / (y2 - y1), abs=0.01)


def test_bars_of_two_series_stand_next_to_each_other():
    chart = bar_chart("L", "words", ["1", "2"], {"a": [4, 0], "b": [2, 1]}, summary="")
    assert [bar.title for bar in chart.bars] == ["1: 4 rows, a", "1: 2 rows, b", "2: 1 rows, b"]
    first, second, third = chart.bars
    assert first.height == pytest.approx(2 * second.height, abs=0.2)
    assert second.height == pytest.approx(2 * third.height, abs=0.2)
    assert first.x + first.width == pytest.approx(second.x, abs=0.2)
