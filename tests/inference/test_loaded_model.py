"""A result is used from Python with texts, dictionaries or a dataset."""

import dataclasses
import typing

import datasets
import pytest
from peft import PeftModel

from pipelines import (
    Continuation,
    DataError,
    Generation,
    RecipeError,
    TextClassification,
    generate,
    load,
    predict,
)
from pipelines.cli import console
from pipelines.data.load import read_file
from pipelines.hub.load import load_result
from pipelines.inference.input_rows import to_examples
from pipelines.inference.predict import predict_examples
from pipelines.tasks.generation import GenerationOptions

TEXTS = ["The hinge is broken.", "My parcel is late again.", "Refund me."]


@pytest.fixture(scope="module")
def results(adapters):
    """A classifier, an answerer and two writers."""
    return adapters("text_classification", "question_answering", "causal_lm", "instruction_tuning")


def test_texts_dictionaries_and_datasets_are_the_same_rows(results):
    classifier = load(results / "text_classification")
    expected = classifier.predict(TEXTS)
    assert [found["label"] in classifier.labels for found in expected] == [True] * 3
    rows = [{"text": text, "other": 1} for text in TEXTS]
    dataset = datasets.Dataset.from_list(rows)
    for given in (rows, dataset, dataset["text"], dataset.to_iterable_dataset(), iter(TEXTS)):
        assert classifier.predict(given) == expected
    assert classifier.predict([]) == []
    assert predict(results / "text_classification", TEXTS) == expected


def test_one_text_or_one_dictionary_is_a_list_of_one_row(results):
    classifier = load(results / "text_classification")
    (alone,) = classifier.predict(TEXTS[0])
    assert [alone] == classifier.predict({"text": TEXTS[0]}) == classifier.predict(TEXTS[:1])
    writer = load(results / "causal_lm")
    assert writer.generate("My", max_new_tokens=3) == writer.generate(["My"], max_new_tokens=3)


def test_a_loaded_model_has_the_parts_of_its_run(results):
    loaded = load(results / "text_classification")
    assert isinstance(loaded.task, TextClassification)
    assert loaded.task is loaded.recipe.task
    assert loaded.metrics["primary"] == "accuracy"
    assert loaded.tokenizer("a")["input_ids"]
    assert loaded.model.config.num_labels == len(loaded.labels) == 8


def test_questions_come_with_their_context(results):
    answerer = load(results / "question_answering")
    row = {"question": "Who wrote?", "context": "Ada wrote on Monday."}
    (found,) = answerer.predict(row)
    assert row["context"][found["start"] : found["end"]] == found["answer"] or not found["answer"]
    with pytest.raises(DataError, match="columns 'question' and 'context'"):
        answerer.predict("Who wrote?")


def test_a_pair_of_texts_is_given_by_its_columns():
    pair = TextClassification(dataset=None, text_column="premise", text_pair_column="hypothesis")
    with pytest.raises(DataError, match="columns 'premise' and 'hypothesis'"):
        to_examples(pair, ["one text"])


@pytest.mark.parametrize("name", ["causal_lm", "instruction_tuning"])
def test_options_that_are_not_given_are_the_recipes(results, name):
    writer = load(results / name)
    most = writer.task.default_generation.max_new_tokens
    for options in ({}, {"max_new_tokens": 3}):
        for written in writer.generate(TEXTS[:2], **options):
            assert isinstance(written, Continuation)
            tokens = writer.tokenizer(written.text)["input_ids"]
            assert written.ended or 0 < len(tokens) <= options.get("max_new_tokens", most) + 2


def test_a_seed_samples_the_same_text_alone_and_in_a_batch(results):
    options = {"do_sample": True, "max_new_tokens": 6, "seed": 3}
    writer = load(results / "causal_lm")
    together = writer.generate(TEXTS, **options)
    assert [writer.generate(text, **options)[0] for text in TEXTS] == together
    assert generate(results / "causal_lm", TEXTS, **options) == together
    assert writer.generate(TEXTS, **options | {"seed": 4}) != together


def test_what_holds_no_rows_is_refused(results):
    import pandas

    classifier = load(results / "text_classification")
    splits = datasets.DatasetDict(test=datasets.Dataset.from_list([{"text": "a"}]))
    for given, message in (
        (7, "a int is not a list of rows"),
        (b"abc", "a bytes is not a list of rows"),
        (pandas.DataFrame({"text": ["a"]}), "a DataFrame is not a list of rows"),
        (splits, "has the splits test: give one"),
        (["a", 7], "input row 1: 7 is neither a text nor a dictionary"),
        ([{"text": "a"}, {"txt": "a"}], "input row 1: column 'text' holds None.*Columns: txt"),
    ):
        with pytest.raises(DataError, match=message):
            classifier.predict(given)


def test_a_model_of_another_kind_and_wrong_options_are_refused(results):
    writer = load(results / "causal_lm")
    with pytest.raises(DataError, match="a language model has no labels"):
        writer.predict("a")
    with pytest.raises(DataError, match="QuestionAnswering generates no text"):
        load(results / "question_answering").generate("a")
    with pytest.raises(RecipeError, match="temperature: 0 is out of range"):
        writer.generate("a", temperature=0)
    with pytest.raises(TypeError, match="max_tokens"):
        writer.generate("a", max_tokens=5)
    for use in (writer.predict, writer.generate):
        with pytest.raises(ValueError, match="batch_size: 0 is out of range"):
            use("a", batch_size=0)


def test_the_keyword_arguments_are_the_fields_of_generation():
    hints = typing.get_type_hints(Generation)
    assert typing.get_type_hints(GenerationOptions) == hints
    assert list(hints) == [field.name for field in dataclasses.fields(Generation)]


@pytest.mark.parametrize("name", ["text_classification", "question_answering"])
def test_an_adapter_on_fp32_is_merged_and_predicts_as_before(results, helpdesk, name):
    data = {"text_classification": "classify", "question_answering": "answer"}[name]
    rows = read_file(helpdesk / data / "test.jsonl")
    apart = load_result(results / name)
    assert isinstance(apart.model, PeftModel)
    merged = load(results / name)
    assert not isinstance(merged.model, PeftModel)
    assert not any("lora" in each for each, _ in merged.model.named_parameters())
    found = merged.predict(rows.rows)
    for one, other in zip(found, predict_examples(apart, rows), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one.get("scores", {}) == pytest.approx(other.get("scores", {}), abs=1e-5)
        assert (one.get("label"), one.get("answer")) == (other.get("label"), other.get("answer"))


@pytest.mark.parametrize("precision", ["8bit", "4bit", "bf16"])
def test_an_adapter_on_another_precision_is_not_merged(results, precision):
    """Merging would round it, and change what it predicts."""
    assert isinstance(load(results / "causal_lm", precision=precision).model, PeftModel)


def test_assisted_generation_prints_the_same_text_or_says_why_not(results, monkeypatch, capsys):
    def typed(*words):
        monkeypatch.setattr("sys.argv", ["gpt2-recipes", "generate", *map(str, words)])
        try:
            console()
        except SystemExit as stopped:
            return stopped.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    folder, text = results / "causal_lm", "My order is late. My order"
    words = [folder, text, "--max-new-tokens", "20"]
    expected = typed(*words)
    assert expected[0] == 0
    assert typed(*words, "--assistant", folder) == expected
    assert typed(*words, "--prompt-lookup-num-tokens", "5") == expected
    lookup = [*words, "--prompt-lookup-num-tokens"]
    for wrong, code, message in [
        ([*lookup, "0"], 2, "--prompt-lookup-num-tokens: 0 is out of range"),
        ([*lookup, "3", "--assistant", folder], 2, "--assistant: excludes --prompt-lookup"),
        ([*lookup, "3", "--do-sample"], 2, "--prompt-lookup-num-tokens: --do-sample would draw"),
        ([*words, "--assistant", results / "text_classification"], 3, "generates no text"),
    ]:
        stopped, printed = typed(*wrong)
        assert stopped == code
        assert message in printed
