"""Properties that hold for any input."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipelines.data.load import read_file
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import NF4, Int8, Lora, Model, Scratch, Tokenizer, Train
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.label_reader import natural_order
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.spans import window_starts
from pipelines.tasks.text_classification import TextClassification, join_texts

SLOW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NAME = st.text(min_size=1, max_size=12)
FOLDER = st.from_regex(r"[a-z0-9_-][a-z0-9._-]{0,11}", fullmatch=True)
SOURCE = st.builds(
    DatasetSource,
    path=NAME,
    name=st.none() | NAME,
    eval_fraction=st.floats(0.01, 0.99),
    max_train_rows=st.none() | st.integers(1, 10**9),
    split_seed=st.integers(0, 2**40),
)
TASK = st.one_of(
    st.builds(CausalLM, dataset=SOURCE, block_size=st.integers(2, 512)),
    st.builds(TextClassification, dataset=SOURCE, text_pair_column=st.none() | NAME),
    st.builds(QuestionAnswering, dataset=SOURCE, version_2_with_negative=st.booleans()),
)
TRAIN = st.builds(
    Train,
    learning_rate=st.floats(1e-9, 9.9),
    num_train_epochs=st.floats(0.1, 1e3),
    max_steps=st.none() | st.integers(1, 10**9),
    seed=st.integers(0, 2**31),
)
TUNED = st.builds(
    Recipe,
    name=FOLDER,
    task=TASK,
    model=st.builds(Model, name_or_path=NAME, revision=st.none() | NAME),
    quantization=st.none() | st.builds(Int8) | st.builds(NF4),
    lora=st.builds(Lora, r=st.integers(1, 512), target_modules=st.tuples(NAME, NAME)),
    train=TRAIN,
)
NEW = st.builds(
    Recipe,
    name=FOLDER,
    task=TASK,
    model=st.builds(Scratch, tokenizer=st.builds(Tokenizer) | st.builds(Model, name_or_path=NAME)),
    train=TRAIN,
)


@SLOW
@given(TUNED | NEW)
def test_a_recipe_comes_back_from_json_equal(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@SLOW
@given(JSON | st.text(max_size=40), st.sampled_from(["", "name", "task", "model", "train", "lora"]))
def test_a_text_that_is_not_a_recipe_is_an_error(value, position):
    good = Recipe(
        name="a", task=CausalLM(dataset=DatasetSource(path="a/b")), model=Model(name_or_path="c/d")
    )
    whole = json.loads(good.to_json())
    text = json.dumps(whole | {position: value}) if position else json.dumps(value)
    try:
        found = Recipe.from_json(text)
    except RecipeError:
        return
    assert isinstance(found, Recipe)
    assert Recipe.from_json(found.to_json()) == found


@SLOW
@given(st.binary(max_size=60), st.integers(0, 2000), st.integers(0, 60))
@example(b"{", 60, 29)  # a type that is an object
def test_a_damaged_recipe_json_is_a_recipe_or_an_error(tmp_path, content, position, length):
    good = Recipe(
        name="a", task=CausalLM(dataset=DatasetSource(path="a/b")), model=Model(name_or_path="c/d")
    )
    whole = good.to_json().encode()
    file = tmp_path / "recipe.json"
    file.write_bytes(whole[:position] + content + whole[position + length :])
    recipe, problems = None, []
    try:
        recipe = Recipe.from_file(file)
    except RecipeError as error:
        problems = error.problems
    assert isinstance(recipe, Recipe) or problems


@given(st.lists(st.integers(0, 10**6).map(str), min_size=1))
def test_numeric_labels_are_in_numeric_order(names):
    assert sorted(names, key=natural_order) == [str(n) for n in sorted(map(int, names))]


@given(st.lists(st.text(max_size=6)))
def test_the_order_of_labels_does_not_depend_on_the_order_of_rows(names):
    unique = sorted(set(names))
    assert sorted(unique, key=natural_order) == sorted(unique[::-1], key=natural_order)


@SLOW
@given(st.lists(st.text(max_size=40), min_size=1, max_size=8), st.integers(2, 40))
def test_packed_blocks_predict_every_token_exactly_once(tokenizer, texts, block_size):
    task = CausalLM(dataset=DatasetSource(path="a"), block_size=block_size)
    examples = Examples([{"text": text} for text in texts], "rows")
    found = task.features(examples, tokenizer, (), training=False)
    eos = tokenizer.eos_token_id
    wanted = []
    for text in texts:
        wanted += [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]
    predicted = [int(t) for row in found.dataset for t in row["input_ids"][1:]]
    assert predicted == wanted
    assert all(len(row["input_ids"]) <= block_size for row in found.dataset)


@SLOW
@given(st.lists(st.text(max_size=40), min_size=1, max_size=8), st.integers(2, 40), st.booleans())
def test_isolated_documents_are_each_predicted_once(tokenizer, texts, block_size, training):
    source = DatasetSource(path="a")
    task = CausalLM(dataset=source, block_size=block_size, packing="bfd_split")
    examples = Examples([{"text": text} for text in texts], "rows")
    found = task.features(examples, tokenizer, (), training=training)
    eos = tokenizer.eos_token_id
    wanted = []
    for text in texts:
        wanted += [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]
    assert all(len(row["input_ids"]) <= block_size for row in found.dataset)
    batch = task.collate(eos)([dict(row) for row in found.dataset])
    learned = batch["labels"][:, 1:]
    assert sorted(learned[learned != -100].tolist()) == sorted(wanted)
    if training:
        assert sum(sum(row["seq_lengths"]) for row in found.dataset) == sum(
            len(row["input_ids"]) for row in found.dataset
        )


@given(st.integers(0, 500), st.integers(2, 64), st.integers(0, 63))
def test_windows_leave_no_token_out(num_tokens, room, stride):
    stride = min(stride, room // 2)
    starts = window_starts(num_tokens, room, stride)
    covered = {i for start in starts for i in range(start, min(start + room, num_tokens))}
    assert covered == set(range(num_tokens))
    assert all(b - a == room - stride for a, b in zip(starts, starts[1:], strict=False))


@SLOW
@given(st.text(min_size=1, max_size=60).filter(str.strip), st.integers(0, 2**32 - 1))
def test_an_answer_is_always_a_substring_of_the_context(tokenizer, context, seed):
    task = QuestionAnswering(
        dataset=DatasetSource(path="a"), version_2_with_negative=True, max_length=24, stride=4
    )
    examples = Examples([{"question": "Who?", "context": context}], "rows")
    given_rows = task.features(examples, tokenizer, (), training=False, labelled=False)
    generator = np.random.default_rng(seed)
    logits = [generator.normal(size=(len(row["input_ids"]), 2)) for row in given_rows.dataset]
    [found] = task.predictions(logits, given_rows, ())
    if found["answer"]:
        assert context[found["start"] : found["end"]] == found["answer"]
        assert found["answer"] == found["answer"].strip()
    else:
        assert found["start"] is None
    assert 0 < found["score"] <= 1


@given(
    st.lists(st.lists(st.integers(1, 99), max_size=40), min_size=1, max_size=2),
    st.integers(4, 50),
)
def test_joined_texts_fit_and_lose_only_the_excess(parts, max_length):
    ids, cut = join_texts(parts, 0, max_length)
    assert 1 <= len(ids) <= max_length
    assert cut == (sum(map(len, parts)) + len(parts) - 1 > max_length)
    if not cut and ids != [0]:
        assert [i for i in ids if i] == [i for part in parts for i in part]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt", ".json"])
@SLOW
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_yields_rows_or_an_error_that_names_it(tmp_path, suffix, content):
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(content)
    examples, message = None, ""
    try:
        examples = read_file(file)
    except DataError as error:
        message = str(error)
    if examples is None:
        assert str(file) in message
    else:
        assert all(isinstance(row, dict) for row in examples.rows)
        assert examples.fingerprint()
