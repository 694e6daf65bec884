"""The parts of a report, from numbers worked out by hand."""

from dataclasses import replace

import pytest

from helpers.reported_runs import PROBABILITIES, RECIPE, classified, write_run
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.html_report.escaping import breakable, cut, number, visible
from pipelines.html_report.files import read_run
from pipelines.html_report.ranking import worst_and_best
from pipelines.html_report.sections import (
    OTHERS,
    commands,
    confusion_matrix,
    lengths_chart,
    recipe_fields,
    timing,
)
from pipelines.html_report.statistics import histogram, split_statistics
from pipelines.recipe.values import NF4
from pipelines.tasks.base import RowResult
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.preference import PreferenceTuning
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

ANYWHERE = DatasetSource(path="nowhere")


def test_rows_are_ranked_by_the_probability_of_their_label():
    results = [classified(*each) for each in enumerate(PROBABILITIES)]
    worst, best = worst_and_best(RECIPE.task, results)
    # 8 of 12 of the ten rows are the worst, 6.67 and so 7; 3 are left
    assert [PROBABILITIES[each.index] for each in worst] == [0.1, 0.2, 0.3, 0.4, 0.55, 0.6, 0.7]
    assert [PROBABILITIES[each.index] for each in best] == [0.95, 0.9, 0.8]
    assert worst[0].row == "rows.jsonl:6"
    assert worst[0].shown.detail == "probability 0.900, of the reference 0.100"
    assert best[0].shown.detail == "probability 0.950"
    worst, best = worst_and_best(RECIPE.task, results * 10)
    assert (len(worst), len(best)) == (8, 4)
    assert worst_and_best(RECIPE.task, []) == ([], [])


def test_wrong_answers_are_ranked_by_how_sure_the_model_is():
    task = QuestionAnswering(dataset=ANYWHERE, version_2_with_negative=True)
    given = [(0.0, 0.2), (0.0, 0.9), (1.0, 0.3), (1.0, 0.8), (0.5, 0.6)]
    results = [RowResult(str(f1), {"answer": "a", "score": s}, [], [f1]) for f1, s in given]
    worst, best = worst_and_best(task, results)
    assert [given[each.index] for each in worst] == [(0.0, 0.9), (0.0, 0.2), (0.5, 0.6), (1.0, 0.3)]
    assert [given[each.index] for each in best] == [(1.0, 0.8)]
    assert worst[0].shown.reference == ""  # no answer


def test_other_tasks_rank_by_distance_loss_and_margin():
    regression = TextClassification(dataset=ANYWHERE, problem_type="regression")
    assert regression.shown(RowResult("", {"value": 1.5}, 4.0, [0.0])).rank == (-2.5,)
    several = replace(regression, problem_type="multi_label_classification")
    prediction = {"labels": ["a"], "scores": {"a": 0.8, "b": 0.5}}
    shown = several.shown(RowResult("", prediction, [], [0.0]))
    # "a" is wrong with 0.2 left for it, "b" right with 0.5: their geometric mean is 0.1 ** 0.5
    assert shown.detail == "mean probability of the reference 0.316"
    assert (shown.prediction, shown.reference) == ("a", "no label")
    text = CausalLM(dataset=ANYWHERE)
    block = RowResult("block 0", {"loss": 2.0}, {"tokens": 8}, [16.0, 8.0])
    assert text.shown(block).rank == (-2.0,)
    assert text.shown(block).detail == "perplexity 7.389"  # e squared
    empty = RowResult("block 1", {"loss": None}, {"tokens": 0}, [0.0, 0.0])
    assert text.shown(block).rank < text.shown(empty).rank
    rewards = {"chosen_reward": -1.0, "rejected_reward": 0.5, "reward_margin": -1.5}
    shown = PreferenceTuning(dataset=ANYWHERE).shown(RowResult("", rewards, None, [0.0]))
    assert shown.rank == (-1.5,)
    assert shown.prediction == "the rejected reply"


def test_the_labels_with_fewest_rows_are_added_up():
    labels = [str(n) for n in range(14)]
    # label n has n + 1 rows: all but one right, the other predicted as label 0
    counts = [[0] * 14 for _ in labels]
    for n in range(14):
        counts[n][n] += n
        counts[n][0] += 1
    names, matrix = confusion_matrix(labels, counts)
    assert names == [*(str(n) for n in range(3, 14)), OTHERS]
    assert sum(cell.count for row in matrix for cell in row) == sum(range(1, 15))
    # labels 0, 1 and 2 have 1 + 2 + 3 rows, and all their errors are label 0
    assert [cell.count for cell in matrix[-1]] == [0] * 11 + [6]
    # label 13: 13 right, and one as label 0
    assert [cell.count for cell in matrix[-2]] == [0] * 10 + [13, 1]
    # 13 of 14 is more than 5 sixths, 1 of 14 less than one sixth
    assert [matrix[-2][n].shade for n in (0, 10, 11)] == [0, 6, 1]
    few, _ = confusion_matrix(["a", "b"], [[1, 0], [0, 1]])
    assert few == ["a", "b"]


def test_lengths_have_bins_of_equal_width_and_a_last_one_for_the_rest():
    found = histogram([1] * 50 + [9] * 49 + [500])
    # the 99th of 100 is 9, so that 20 bins of 1 hold 0 to 18, and the last one the 500
    assert found["width"] == 1
    assert [found["counts"][n] for n in (0, 1, 9, 19)] == [0, 50, 49, 1]
    assert (found["median"], found["p95"], found["longest"]) == (1, 9, 500)
    assert histogram([40])["width"] == 3  # 41 values in 20 bins


def test_a_split_is_told_by_what_was_read(tokenizer):
    rows = [{"text": "a b c d e f", "label": "x"}, {"text": "a", "label": "y"}] * 2
    examples = Examples(rows, origin="rows.jsonl")
    task = replace(RECIPE.task, max_length=4)
    features = task.features(examples, tokenizer, ("x", "y"), training=True)
    found = split_statistics(task, examples, features)
    assert found["counts"] == {"rows": 4, "rows_cut": 2}
    assert found["tokens"] == 2 * (4 + 1)
    assert found["labels"] == {"x": 2, "y": 2}
    assert (found["lengths"]["of"], found["lengths"]["limit"]) == ("max_length", 4)
    streamed = Examples(iter(()), origin="a stream")
    assert split_statistics(task, streamed, features) == {"streamed": True}


def test_fields_that_differ_from_their_defaults_come_first():
    fields = recipe_fields(replace(RECIPE, quantization=NF4()))
    differing = {field.path: field.value for field in fields if field.differs}
    assert differing == {
        "name": "reported",
        "task": "TextClassification",
        "task.dataset": "DatasetSource",
        "task.dataset.path": "./rows.jsonl",
        "task.max_length": 64,
        "model": "Model",
        "model.name_or_path": "user/base",
        "quantization": "NF4",
        "lora": "Lora",
        "lora.r": 8,
        "train.learning_rate": 1e-3,
    }
    assert [field.differs for field in fields] == sorted(
        (field.differs for field in fields), reverse=True
    )
    assert "train.seed" in {field.path for field in fields if not field.differs}


def test_commands_name_the_folder_as_the_shell_reads_it(tmp_path):
    run = read_run(str(write_run(tmp_path / "my runs" / "a;b")))
    found = commands(run)
    folder = f"'{tmp_path}/my runs/a;b'"
    assert found["evaluate"] == f"gpt2-recipes evaluate {folder}"
    assert found["reproduce"].startswith(f"gpt2-recipes train {folder[:-1]}/recipe.json' --output")
    assert list(found) == ["reproduce", "evaluate", "predict", "merge", "publish"]
    assert timing(run) == [("reading", 1.0, 0.1), ("training", 9.0, 0.9)]


def test_lengths_of_answers_are_counted_in_words():
    task = QuestionAnswering(dataset=ANYWHERE, version_2_with_negative=True)
    answers = [("", []), ("one", ["one two"]), ("one two three", ["one"])]
    rows = [RowResult("", {"answer": a, "score": 1.0}, gold, [1.0]) for a, gold in answers]
    chart = lengths_chart(task, rows)
    assert [tick.label for tick in chart.x_ticks] == ["0", "1", "2", "3–5"]
    assert [bar.title for bar in chart.bars] == [
        "0: 1 rows, model",
        "1: 1 rows, model",
        "3–5: 1 rows, model",
        "0: 1 rows, reference",
        "1: 1 rows, reference",
        "2: 1 rows, reference",
    ]
    assert "the model's have 1.3 on average, the references 1.0" in chart.summary


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\x00\x1b[31mb", "a⟨U+0000⟩⟨U+001B⟩[31mb"),
        ("abc\u202edcba", "abc⟨U+202E⟩dcba"),
        ("half \ud83d pair", "half ⟨U+D83D⟩ pair"),
        ("שלום 👍🏽", "שלום 👍🏽"),
    ],
)
def test_what_is_invisible_is_shown_as_its_code(text, shown):
    assert visible(text) == shown


def test_long_texts_and_numbers_are_short():
    assert cut("x" * 100_000) == "x" * 700 + " … (99,300 more characters)"
    assert cut("short") == "short"
    assert [number(v) for v in (None, 3, 12_345, 0.123456789, 2e-5, 123_456.7, "a")] == [
        "",
        "3",
        "12,345",
        "0.12346",
        "2e-05",
        "123,456.7",
        "a",
    ]
    assert breakable("<a>.b_c") == "&lt;a&gt;.<wbr>b_<wbr>c"
