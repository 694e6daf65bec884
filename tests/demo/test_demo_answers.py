"""What a page shows of a prediction, and the examples that it offers."""

import json

from pipelines.data.source import DatasetSource
from pipelines.demo.answers import answered, bars, chosen, highlighted
from pipelines.demo.examples import read_examples
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

NOWHERE = DatasetSource(path="nowhere")


def test_bars_are_of_all_labels_and_name_thresholds():
    prediction = {"labels": ["a"], "scores": {"a": 0.5, "b": 0.2}}
    assert bars(prediction, {}) == {"a": 0.5, "b": 0.2}
    assert bars(prediction, {"a": 0.4, "b": 0.25}) == {"a (above 40%)": 0.5, "b (above 25%)": 0.2}
    assert chosen(prediction) == "a"
    assert chosen({"labels": []}) == "no label is above its threshold"


def test_thresholds_are_those_of_the_task():
    several = {"problem_type": "multi_label_classification"}
    task = TextClassification(dataset=NOWHERE, **several, thresholds={"a": 0.4, "b": 0.25})
    assert task.thresholds_of(("b", "a")) == {"b": 0.25, "a": 0.4}
    assert TextClassification(dataset=NOWHERE, **several).thresholds_of(("b",)) == {"b": 0.5}
    assert TextClassification(dataset=NOWHERE).thresholds_of(("b", "a")) == {}


def test_an_answer_is_marked_where_it_is_and_a_missing_one_is_said():
    found = {"answer": "€33", "start": 7, "end": 10, "score": 0.97}
    assert highlighted("I paid €33 today", found) == [
        ("I paid ", None),
        ("€33", "answer"),
        (" today", None),
    ]
    assert highlighted("I paid €33", found) == [("I paid ", None), ("€33", "answer")]
    assert answered(found) == "€33 (97%)"
    nothing = {"answer": "", "start": None, "end": None, "score": 0.5}
    assert highlighted("I paid", nothing) == [("I paid", None)]
    assert answered(nothing) == "no answer in this context (50%)"


def test_examples_are_the_validation_rows_that_the_run_has_shown(tmp_path):
    def examples_of(task, *inputs):
        rows = [{"when": "after", "input": text} for text in inputs]
        rows.append({"when": "before", "input": "x"})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "samples.jsonl").write_text(lines)
        return read_examples(tmp_path, task)

    assert examples_of(TextClassification(dataset=NOWHERE), "one\ntwo") == [["one\ntwo"]]
    pair = TextClassification(dataset=NOWHERE, text_pair_column="other")
    assert examples_of(pair, "one\ntwo", "one\ntwo\nthree") == [["one", "two"]]
    assert examples_of(QuestionAnswering(dataset=NOWHERE), "Who?\nAda did.") == [
        ["Who?", "Ada did."]
    ]
    assert examples_of(CausalLM(dataset=NOWHERE), "Hello") == [["Hello"]]
    prompt = InstructionTuning(dataset=NOWHERE, prompt_format="Do {{it}}: {what} \nReply: ")
    assert examples_of(prompt, "Do {it}: a sum \nReply:", "cut: a sum \nReply:") == [["a sum"]]
    two = InstructionTuning(dataset=NOWHERE, prompt_format="{a} {b}")
    assert examples_of(two, "x y") == []
    (tmp_path / "samples.jsonl").unlink()
    assert read_examples(tmp_path, two) == []
