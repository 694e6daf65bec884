"""predictions.jsonl: written row by row, listed in task.json, read with checks."""

import json

import pytest

from pipelines.errors import RecipeError
from pipelines.results.files import (
    PREDICTIONS,
    digest,
    find_result_damage,
    install_staged_result,
    make_stage,
    read_manifest,
    update_manifest,
    write_manifest,
)
from pipelines.results.predictions import read_predictions, write_predictions
from pipelines.tasks.base import RowResult

ROWS = [
    RowResult("a.csv:2", {"label": "ä", "score": 0.5}, "ä", [1.0]),
    RowResult("a.csv:3", {"label": "b\n", "score": 0.9}, ["c"], [0.0]),
]


def write_stage(folder, rows):
    """Write a new result of these rows to the stage of a folder."""
    stage = make_stage(folder)
    (stage / "recipe.json").write_text("{}")
    write_predictions(stage, rows)
    write_manifest(stage, {"labels": []})


@pytest.fixture
def result(tmp_path):
    """A folder with a result of two rows."""
    write_stage(tmp_path, ROWS)
    install_staged_result(tmp_path)
    return tmp_path


def test_rows_are_read_as_they_were_written(result):
    assert len((result / PREDICTIONS).read_text(encoding="utf-8").splitlines()) == len(ROWS)
    assert list(read_predictions(result, read_manifest(result), "result")) == ROWS
    assert find_result_damage(result) == []


def test_no_rows_leave_no_file_and_remove_the_one_of_the_result_before(result):
    write_stage(result, [])
    install_staged_result(result)
    assert not (result / PREDICTIONS).exists()
    assert read_predictions(result, read_manifest(result), "result") is None
    assert find_result_damage(result) == []


def test_predictions_may_be_removed_but_not_changed(result):
    content = (result / PREDICTIONS).read_text(encoding="utf-8")
    (result / PREDICTIONS).write_text(content.replace("0.9", "0.8"), encoding="utf-8")
    assert find_result_damage(result) == [f"{PREDICTIONS} has changed since it was written."]
    with pytest.raises(RecipeError, match=f"result: {PREDICTIONS} has changed"):
        read_predictions(result, read_manifest(result), "result")
    (result / PREDICTIONS).unlink()
    assert find_result_damage(result) == []
    assert read_predictions(result, read_manifest(result), "result") is None


def test_predictions_of_another_result_are_noticed(result):
    sidecar = read_manifest(result)
    del sidecar["files"][PREDICTIONS]
    (result / "task.json").write_text(json.dumps(sidecar))
    assert find_result_damage(result) == [f"{PREDICTIONS} does not belong to the result."]


def test_predictions_do_not_decide_what_a_result_predicts(result):
    sidecar = read_manifest(result)
    before = digest(sidecar)
    del sidecar["files"][PREDICTIONS]
    assert digest(sidecar) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "is not an object with row, prediction, reference, values"),
        ('{"row": "a", "prediction": 1, "reference": 1}', "is not an object with row"),
        ('{"row": 1, "prediction": 1, "reference": 1, "values": [1]}', "row is 1, not a text"),
        ('{"row": "a", "prediction": 1, "reference": 1, "values": []}', "not finite numbers"),
        ('{"row": "a", "prediction": 1, "reference": 1, "values": [NaN]}', "not finite numbers"),
        ('{"row": "a", "prediction": 1, "reference": 1, "values": [true]}', "not finite numbers"),
        ('{"row": "a", "prediction": 1, "reference": 1, "values": [1, 2]}', "2 values, not 1"),
        ("{", "Expecting property name"),
    ],
)
def test_a_line_that_is_no_row_is_named(result, line, message):
    with (result / PREDICTIONS).open("a", encoding="utf-8") as out:
        out.write(line + "\n")
    write_manifest(result)
    with pytest.raises(RecipeError, match=f"result: {PREDICTIONS}:3: .*{message}"):
        list(read_predictions(result, read_manifest(result), "result"))


def test_a_value_that_json_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_predictions(tmp_path, [RowResult("a", {"score": float("nan")}, None, [1.0])])


def test_a_field_is_replaced_without_listing_damaged_files_as_whole(result):
    (result / "recipe.json").write_text("{ }")
    update_manifest(result, {"seeds": {"mean": 0.5}})
    assert read_manifest(result)["seeds"] == {"mean": 0.5}
    assert find_result_damage(result) == ["recipe.json has 3 bytes, not 2."]
