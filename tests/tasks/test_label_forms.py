"""Labels as foreign data holds them: lists, vectors, columns, floats and near-equal names."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError, NonFiniteError, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.tasks.base import Features
from pipelines.tasks.text_classification import TextClassification

ANYWHERE = DatasetSource(path="nowhere")
SEVERAL = TextClassification(dataset=ANYWHERE, problem_type="multi_label_classification")
ONE = TextClassification(dataset=ANYWHERE)
NUMBER = TextClassification(dataset=ANYWHERE, problem_type="regression")


def rows_of(labels, **options):
    """Return rows with these labels."""
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]
    return Examples(rows, "a.jsonl", list(range(1, len(rows) + 1)), **options)


def read(task, labels, **options):
    """Return the label names and the targets that a run would learn."""
    examples = rows_of(labels, **options)
    task = task.resolved(examples)
    names = task.labels(examples)
    return names, [task.target(examples, i, row, names) for i, row in enumerate(examples.rows)]


VECTORS = [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    "labels",
    [
        VECTORS,
        [[bool(bit) for bit in row] for row in VECTORS],
        [[float(bit) for bit in row] for row in VECTORS],
        [np.array(row) for row in VECTORS],
        [[str(bit) for bit in row] for row in VECTORS],
        [json.dumps(row) for row in VECTORS],
        [str([bool(bit) for bit in row]) for row in VECTORS],
        [str(np.array(row)) for row in VECTORS],
        [str(np.array(row, dtype=bool)) for row in VECTORS],
    ],
    ids=["ints", "booleans", "floats", "arrays", "texts", "JSON", "Python", "numpy", "numpy bool"],
)
def test_a_vector_holds_1_for_each_label_of_the_row(labels):
    names, targets = read(SEVERAL, labels)
    assert names == ("0", "1", "2")
    assert targets == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("row", [[1, 0], [1, 1], [0, 0]])
def test_two_labels_are_a_vector_where_a_row_repeats_a_value_or_holds_floats_or_booleans(row):
    if row != [1, 0]:
        assert read(SEVERAL, [[0, 1], row])[1] == [[0, 1], row]
    for kind in (float, bool):
        assert read(SEVERAL, [[kind(0), kind(1)], list(map(kind, row))])[1] == [[0, 1], row]


def test_two_labels_that_could_be_ids_or_a_vector_are_refused_until_one_is_named():
    labels = [[0, 1], [1, 0], [0, 1]]
    with pytest.raises(DataError, match=r"a.jsonl: column 'label': every row holds.*--task.label-"):
        SEVERAL.resolved(rows_of(labels))
    ids = TextClassification(
        dataset=ANYWHERE, problem_type="multi_label_classification", label_form="list"
    )
    assert read(ids, labels) == (("0", "1"), [[1, 1], [1, 1], [1, 1]])
    vectors = TextClassification(
        dataset=ANYWHERE, problem_type="multi_label_classification", label_form="multi_hot"
    )
    assert read(vectors, labels) == (("0", "1"), [[0, 1], [1, 0], [0, 1]])
    # A dataset that declares names for ids says so
    declared = {"label": ("low", "high")}
    assert read(SEVERAL, labels, label_names=declared)[0] == ("low", "high")
    assert read(SEVERAL, labels, label_names=declared)[1] == [[1, 1]] * 3


@pytest.mark.parametrize(
    ("labels", "names", "targets"),
    [
        ([[0], [1], [0, 1], []], ("0", "1"), [[1, 0], [0, 1], [1, 1], [0, 0]]),
        ([[0], [1], [1]], ("0", "1"), [[1, 0], [0, 1], [0, 1]]),
        ([[0, 2], [1], []], ("0", "1", "2"), [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        ([[0, 1, 2], [3, 1, 2]], ("0", "1", "2", "3"), [[1, 1, 1, 0], [0, 1, 1, 1]]),
        ([[0.0, 2.0], [1.0]], ("0", "1", "2"), [[1, 0, 1], [0, 1, 0]]),
        ([["b", "a"], [], ["a"]], ("a", "b"), [[1, 1], [0, 0], [1, 0]]),
        (['["b", "a"]', "[]", "['a']"], ("a", "b"), [[1, 1], [0, 0], [1, 0]]),
    ],
)
def test_lists_hold_ids_or_names_and_an_empty_one_means_no_label(labels, names, targets):
    assert read(SEVERAL, labels) == (names, targets)


@pytest.mark.parametrize(
    "cell", [["b", "a", "b"], [2, 1, 2.0], ["2", "1", "2.0"], "['b', 'a', 'b']"]
)
def test_a_label_that_a_row_repeats_is_one_label(cell):
    """Else the report, and the draw that keeps each label in proportion, count the row twice."""
    examples = rows_of([cell, ["c" if "b" in str(cell) else type(cell[0])(3)]])
    names = SEVERAL.resolved(examples).row_labels(examples, 0, examples.rows[0])
    assert names in (["b", "a"], ["2", "1"])


@pytest.mark.parametrize("cell", [["a", ""], [""], ["a", "  "], "['a', '']"])
def test_a_label_without_a_name_is_refused(cell):
    """As `"".split(";")` makes one of a row without labels."""
    with pytest.raises(DataError, match=r"a.jsonl:2: .* is not a name.*an empty list"):
        read(SEVERAL, [["a"], cell, ["b"]])


def test_a_separator_splits_the_labels_of_a_cell():
    task = TextClassification(
        dataset=ANYWHERE, problem_type="multi_label_classification", label_separator=";"
    )
    assert read(task, ["b; a", "", "a"]) == (("a", "b"), [[1, 1], [0, 0], [1, 0]])
    assert read(task, ["1;0;0", "0;0;0"]) == (("0", "1", "2"), [[1, 0, 0], [0, 0, 0]])
    for cell in ("a;b", "a", "['a' 'b']"):  # Python reads the last as ["ab"]
        with pytest.raises(DataError, match=r"a.jsonl:2: .* not a list.*--task.label-separator"):
            read(SEVERAL, [["a"], cell, ["b"]])


def test_a_wrong_vector_names_its_row_and_what_is_wrong():
    task = SEVERAL.resolved(rows_of([*VECTORS, [0, 1, 0], [0, 0]]))
    assert task.label_form == "multi_hot"
    examples = rows_of([[0, 1], [0, 2, 0], None])
    for index, text in enumerate(["1: .*2 values for 3 labels", "2: 2 is neither", "3: no value"]):
        with pytest.raises(DataError, match=f"a.jsonl:{text}"):
            task.row_labels(examples, index, examples.rows[index])
    with pytest.raises(DataError, match="0.3 is not one label.*not probabilities"):
        read(SEVERAL, [[0.3, 0.7], [0.1, 0.9]])
    # one mistake between many vectors makes no list of ids of them
    assert SEVERAL.resolved(rows_of([*VECTORS, [0, 2, 0]])).label_form == "multi_hot"


def test_evaluation_rows_are_read_in_the_form_of_the_training_rows():
    trained = SEVERAL.resolved(rows_of(VECTORS))
    other = rows_of([[0, 1, 0]])
    assert trained.target(other, 0, other.rows[0], ("0", "1", "2")) == [0, 1, 0]
    assert trained.resolved(other) == trained
    recipe = Recipe(name="a", task=trained, model=Model(name_or_path="b"))
    assert Recipe.from_json(recipe.to_json()) == recipe
    lists = SEVERAL.resolved(rows_of([[0], [0, 1], [2]]))
    assert lists.target(other, 0, {"label": [0, 1]}, ("0", "1", "2")) == [1, 1, 0]


def test_vectors_take_names_from_the_task_or_from_the_dataset():
    task = TextClassification(
        dataset=ANYWHERE, problem_type="multi_label_classification", label_names=("x", "y", "z")
    )
    assert read(task, VECTORS)[0] == ("x", "y", "z")
    declared = {"label": ("p", "q", "r")}
    assert read(SEVERAL, VECTORS, label_names=declared)[0] == ("p", "q", "r")
    with pytest.raises(DataError, match="3 --task.label-names for vectors of 4"):
        task.resolved(rows_of([[0, 0, 1, 0]]))
    with pytest.raises(DataError, match="holds lists of labels"):
        task.resolved(rows_of([["a"], ["b"]]))


def test_each_label_can_have_a_column():
    task = TextClassification(
        dataset=ANYWHERE,
        problem_type="multi_label_classification",
        label_columns=("sport", "art"),
    )
    rows = [
        {"text": "a", "sport": "1", "art": "0.0"},
        {"text": "b", "sport": False, "art": "TRUE"},
        {"text": "c", "sport": 0.0, "art": 0},
    ]
    examples = Examples(rows, "a.csv", [2, 3, 4])
    names = task.resolved(examples).labels(examples)
    assert names == ("sport", "art")
    assert [task.target(examples, i, r, names) for i, r in enumerate(rows)] == [
        [1, 0],
        [0, 1],
        [0, 0],
    ]
    for value in ("", None, 0.7, -1, "x"):
        with pytest.raises(DataError, match="a.csv:2: column 'art' holds .*, neither 0 nor 1"):
            task.row_labels(examples, 0, rows[0] | {"art": value})
    with pytest.raises(DataError, match="no value in column 'label'.*--task.label-columns"):
        SEVERAL.row_labels(examples, 0, rows[0])


@pytest.mark.parametrize(
    "options",
    [
        {"problem_type": "regression", "label_columns": ("a", "b")},
        {"label_form": "multi_hot"},
        {"label_separator": ";"},
        {"problem_type": "multi_label_classification", "label_columns": ("a",)},
        {"problem_type": "multi_label_classification", "label_columns": ("a", "a")},
        {"problem_type": "multi_label_classification", "label_separator": ""},
        {
            "problem_type": "multi_label_classification",
            "label_columns": ("a", "b"),
            "label_separator": ";",
        },
        {
            "problem_type": "multi_label_classification",
            "label_names": ("a", "b"),
            "label_form": "list",
        },
    ],
)
def test_options_of_labels_that_exclude_each_other_are_refused(options):
    with pytest.raises(RecipeError, match="task.label_"):
        Recipe(
            name="a",
            task=TextClassification(dataset=ANYWHERE, **options),
            model=Model(name_or_path="b"),
        )


# One label


@pytest.mark.parametrize(
    "labels",
    [
        [0.0, 1.0],
        ["0.0", "1.0"],
        [0, 1.0],
        ["0", "1.0"],
        ["0.", "1.000"],
        [np.float64(0), np.int8(1)],
    ],
)
def test_whole_numbers_are_classes_however_they_are_written(labels):
    names, targets = read(ONE, [*labels, *labels])
    assert names == ("0", "1")
    assert targets == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0.0, 0.5], "0.5 is not one label.*--task.problem-type regression"),
        (["0.0", "0.5"], "'0.5' is not one label.*regression"),
        ([0.0, float("nan")], "nan is not one label"),
        ([0.0, float("inf")], "inf is not one label"),
        ([0.0, None], "no value in column 'label'"),
        (["a", "  "], "no value in column 'label'"),
        (["a", ["b"]], r"\['b'\] is not one label.*multi_label_classification"),
        ([1.0, -1.0], "label -1 marks a row without a label"),
        ([0.0, "1.0"], "'1.0' is a text, but the first row has 0.0, a number"),
    ],
)
def test_a_value_that_is_not_one_label_is_refused(labels, text):
    with pytest.raises(DataError, match=f"a.jsonl:2: .*{text}"):
        read(ONE, labels)


def test_names_that_only_look_like_numbers_are_kept():
    names = ["1e5", "v1.0", "1.0.1", "007", "+1"]
    assert set(read(ONE, names)[0]) == set(names)


# Cautions


def cautions(labels, task=ONE, **options):
    """Return the cautions about labels before training."""
    examples = rows_of(labels, **options)
    task = task.resolved(examples)
    return list(task.label_cautions(examples))


@pytest.mark.parametrize(
    "other",
    ["pos ", " pos", "POS", "Pos", "ｐｏｓ", "pos\u200b", "\ufeffpos", "pos\u00a0"],
)
def test_near_equal_labels_are_named_with_their_counts(other):
    [text] = cautions(["pos"] * 3 + ["neg"] * 2 + [other])
    assert f"'pos' (3), {other!r} (1)" in text


@pytest.mark.parametrize(
    ("one", "other"),
    [("caf\u00e9", "cafe\u0301"), ("very good", "very  good"), ("sci-fi", "sci_fi"), ("1", "01")],
)
def test_near_equal_spellings_inside_a_name_are_named_too(one, other):
    [text] = cautions([one, other, "else"])
    assert repr(one) in text
    assert repr(other) in text


@pytest.mark.parametrize("task", [ONE, NUMBER])
def test_empty_texts_are_counted(task):
    rows = [{"text": text, "label": n} for n, text in enumerate(["a", "", "b", " \n"])]
    [text] = task.label_cautions(Examples(rows, "a.jsonl"))
    assert text == "2 training rows have an empty text in column 'text'"


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "null", "N/A", "NA", "<NA>"])
def test_a_label_that_looks_like_a_missing_value_is_cautioned(name):
    [text] = cautions(["pos", "neg", "pos", name])
    assert f"look like a missing value: {name!r} (1)" in text


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "b"] * 3,
        ["none", "for", "against"],
        ["C", "C++", "C#"],
        ["5", "-5", "+6"],
        list(map(str, range(1, 11))) * 12,  # stars
        list(range(150)) * 12,  # ids of intents
        [f"intent {i}" for i in range(77)] * 3,
        ["x", "y", "café", "cafe"],
    ],
)
def test_good_labels_are_not_cautioned(labels):
    assert cautions(labels) == []


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (list(map(str, range(0, 101, 10))) * 20, "11 numbers from 0 to 100.*regression"),
        (list(range(101)) * 5, "101 numbers from 0 to 100.*regression"),
        ([f"customer {i}" for i in range(30)], "30 labels in 30 rows, nearly one a row"),
    ],
)
def test_a_scale_and_a_column_of_another_kind_are_cautioned(labels, text):
    [message] = cautions(labels)
    assert re.search(text, message)


def test_a_label_that_every_row_has_is_cautioned():
    assert cautions([[1, 0, 0], [1, 0, 0], [1, 0, 1]], SEVERAL) == [
        "labels that every training row has, so that they cannot be learned: '0' (3)",
    ]
    assert cautions(VECTORS, SEVERAL) == []


@pytest.mark.parametrize("name", ["['a', 'b']", "[0, 1]", "a;b", "a | b", "b,a"])
def test_several_labels_in_a_cell_of_one_are_cautioned(name):
    [text] = cautions(["a", "b", name])
    assert f"labels that look like several: {name!r} (1)" in text
    assert "--task.problem-type multi_label_classification" in text
    assert cautions(["a", "c", "b, not a"]) == []


# Scores that are not defined


def scored(task, predictions, targets):
    """Return the score of predictions, one number for each row."""
    prediction = SimpleNamespace(
        predictions=np.array(predictions, dtype=np.float32)[:, None],
        label_ids=np.array(targets, dtype=np.float32),
    )
    return task.score(prediction, None, ())


def targets_of(targets):
    """Return encoded rows that have nothing but targets."""
    return Features([{"labels": t} for t in targets], {}, num_rows=len(targets))


@pytest.mark.parametrize("targets", [[3.0] * 5, [3.0], [1e9, 1e9 + 1]])  # the last: in 32 bits
def test_targets_without_a_correlation_are_refused_before_training(targets):
    with pytest.raises(
        DataError, match=r"a correlation needs two different.*--task.dataset.eval-split"
    ):
        NUMBER.check_scorable(targets_of(targets))


def test_evaluation_rows_without_any_label_are_refused_and_other_rows_are_not():
    with pytest.raises(DataError, match="none of 2 evaluation rows has a label"):
        SEVERAL.check_scorable(targets_of([[0.0, 0.0], [0.0, 0.0]]))
    SEVERAL.check_scorable(targets_of([[0.0, 0.0], [0.0, 1.0]]))
    NUMBER.check_scorable(targets_of([3.0, 3.5]))
    ONE.check_scorable(targets_of([1]))


def test_a_target_beyond_float32_is_refused():
    with pytest.raises(DataError, match=r"a.jsonl:1: 1e\+39 is not a finite number"):
        read(NUMBER, [1e39])


@pytest.mark.parametrize("value", ["1_5", "1,5", "15%", "", None, "nan", [1.5]])
def test_a_target_that_is_no_number_is_refused(value):
    """Python reads 1_5 as 15."""
    with pytest.raises(DataError, match="a.jsonl:2: .* is not a finite number"):
        read(NUMBER, ["1.5", value, 3])


def test_equal_predictions_have_a_correlation_of_0_and_their_squared_error():
    score = scored(NUMBER, [2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 6.0])
    assert score.metrics == {"pearsonr": 0.0, "spearmanr": 0.0, "mse": 4.5, "loss": 4.5}
    assert score.interval == (0.0, 0.0)
    rounded = scored(NUMBER, np.float32(0.3) + np.float32([0, 3e-8, 6e-8, 9e-8]), [1, 2, 3, 4])
    assert rounded.metrics["pearsonr"] == 0.0  # not the correlation of what rounding left
    narrow = scored(NUMBER, [1000.0, 1000.1, 1000.2, 1000.3], [1, 2, 3, 4])
    assert narrow.metrics["pearsonr"] == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(NonFiniteError, match="1 of 4 predictions are not finite"):
        scored(NUMBER, [1, 1, 1, math.nan], [1, 2, 3, 4])


def test_the_interval_of_a_correlation_lies_between_its_bounds():
    score = scored(NUMBER, [0.1, 0.1, 0.1, 0.1, 0.3], [1e6, 1e6, 1e6, 1e6 + 1, 1e6 + 2])
    low, high = score.interval
    assert -1 <= low <= score.metrics["pearsonr"] <= high <= 1


def recipe_of(rows, folder, checkpoint, **options):
    """Return a recipe that trains for two steps on rows."""
    from pipelines.recipe.values import Train

    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = DatasetSource(path=str(file), eval_fraction=0.3)
    return Recipe(
        name="a",
        task=TextClassification(dataset=source, **options),
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=2, save_steps=None),
        output_dir=str(folder / "out"),
    )


def test_a_collapsed_regression_is_saved_with_its_score(tmp_path, checkpoint):
    """All texts are equal, and so are all predictions."""
    from pipelines.flow import run

    rows = [{"text": "lamp", "label": float(i % 3)} for i in range(20)]
    found = run(recipe_of(rows, tmp_path, checkpoint, problem_type="regression"))
    assert found["pearsonr"] == 0.0
    assert math.isfinite(found["mse"])
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_run_on_constant_targets_ends_before_it_trains(tmp_path, checkpoint, monkeypatch):
    from pipelines import flow

    rows = [{"text": f"lamp {i}", "label": 3.0} for i in range(10)]
    monkeypatch.setattr(flow, "build_model", lambda *arguments: pytest.fail("a model was built"))
    with pytest.raises(DataError, match="all 3 evaluation targets are 3"):
        flow.run(recipe_of(rows, tmp_path, checkpoint, problem_type="regression"))


def test_a_result_keeps_the_form_of_its_labels(tmp_path, checkpoint):
    """The rows of another file would be two ids each; the result reads them as vectors."""
    from pipelines.evaluation.evaluate import evaluate as evaluate_result
    from pipelines.evaluation.evaluate import file_rows
    from pipelines.flow import run
    from pipelines.hub.load import load_result

    rows = [{"text": f"lamp {i}", "label": VECTORS[i % 3][:2]} for i in range(20)]
    recipe = recipe_of(rows, tmp_path, checkpoint, problem_type="multi_label_classification")
    run(recipe)
    folder = tmp_path / "out"
    task = Recipe.from_file(folder / "recipe.json").task
    assert (task.label_form, task.label_names) == ("multi_hot", ("0", "1"))
    assert evaluate_result(folder).equal
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "a", "label": [0, 1]}\n' * 3, encoding="utf-8")
    loaded = load_result(folder)
    found = file_rows(loaded, other)
    encoded = task.features(found, loaded.tokenizer, loaded.labels, training=False).dataset
    assert [row["labels"] for row in encoded] == [[0, 1]] * 3
