"""Losses, padding and windows against numbers computed by hand."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.activations import ACT2FN

from helpers.factories import first_logits
from pipelines.data.load import load_splits
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.models.build import build_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Train
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.label_reader import natural_order
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.spans import Question, Window, window_starts
from pipelines.tasks.text_classification import TextClassification, join_texts
from pipelines.training.arguments import split_batch
from pipelines.training.build import build_trainer

TASKS = ("causal_lm", "text_classification", "question_answering")
ANYWHERE = DatasetSource(path="nowhere")


def make(task, checkpoint, folder, **train):
    """Return what a run has before it trains: recipe, model, features, labels."""
    recipe = Recipe(
        name="tiny",
        task=task,
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=1, **train),
        output_dir=str(folder),
    )
    splits = load_splits(task.dataset)
    labels = task.labels(splits.train)
    return recipe, splits, labels


def test_reported_loss_is_the_mean_nll_per_predicted_token(tasks, checkpoint, tokenizer, tmp_path):
    recipe, splits, labels = make(
        tasks["causal_lm"], checkpoint, tmp_path, per_device_eval_batch_size=3
    )
    model = build_model(recipe, tokenizer, labels)
    held_out = recipe.task.features(splits.held_out, tokenizer, labels, training=False)
    trainer = build_trainer(
        recipe, model, tokenizer, train=None, scored={"eval": held_out}, labels=labels
    )
    metrics = trainer.score("eval").metrics

    nll, count, num_bytes = 0.0, 0, 0
    ids = [tokenizer.eos_token_id]
    for row in splits.held_out.rows:
        ids += [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
        num_bytes += len(row["text"].encode())
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 63):  # blocks of 64 share one token
            block = torch.tensor([ids[start : start + 64]])
            logs = model(input_ids=block).logits.log_softmax(-1)[0]
            for position in range(block.shape[1] - 1):
                nll -= float(logs[position, block[0, position + 1]])
                count += 1
    assert metrics["predicted_tokens"] == count == len(ids) - 1
    assert metrics["loss"] == pytest.approx(nll / count, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(nll / math.log(2) / num_bytes, rel=1e-5)


@pytest.mark.parametrize("adapter", [None, Lora(r=4)])
@pytest.mark.parametrize("name", TASKS)
def test_a_row_has_the_same_logits_alone_and_in_a_padded_batch(
    name, adapter, tasks, checkpoint, tokenizer, tmp_path
):
    task = tasks[name]
    recipe, splits, labels = make(task, checkpoint, tmp_path)
    recipe = Recipe(name="tiny", task=task, model=recipe.model, lora=adapter)
    model = build_model(recipe, tokenizer, labels).eval()
    eos = tokenizer.eos_token_id
    rows = task.features(splits.held_out, tokenizer, labels, training=False).dataset[:6]
    # lengths differ, and one row ends in a true EOS, which is the pad token too
    rows = [dict(row) for row in rows]
    rows[1]["input_ids"] = [*list(rows[1]["input_ids"])[:9], eos]
    if name == "question_answering":
        rows[1]["labels"] = [9, 9, 3, 10]
    collate = task.collate(tokenizer.pad_token_id)

    def logits(batch):
        batch.pop("labels")
        with torch.no_grad():
            out = model(**batch)
        if name == "question_answering":
            return torch.stack([out.start_logits, out.end_logits], -1)
        return out.logits

    together = logits(collate(rows))
    for position, row in enumerate(rows):
        alone = logits(collate([row]))[0]
        got = together[position] if alone.dim() == 1 else together[position][: len(alone)]
        torch.testing.assert_close(got, alone, rtol=1e-5, atol=1e-5)


def test_packing_predicts_every_token_once_and_counts_the_rest(tokenizer):
    texts = ["one two three", "four", "five six seven eight nine ten"]
    examples = Examples([{"text": text} for text in texts], "texts")
    task = CausalLM(dataset=ANYWHERE, block_size=8)
    eos = tokenizer.eos_token_id
    expected = [eos]
    for text in texts:
        expected += [*tokenizer(text)["input_ids"], eos]
    for training in (True, False):
        features = task.features(examples, tokenizer, (), training=training)
        blocks = [list(row["input_ids"]) for row in features.dataset]
        joined = blocks[0] + [token for block in blocks[1:] for token in block[1:]]
        left_out = features.report["tokens_left_out"]
        assert joined == expected[: len(expected) - left_out]
        assert left_out == ((len(expected) - 1) % 7 if training else 0)
        assert features.report["documents"] == 3


def test_streaming_packs_the_same_blocks(tokenizer, helpdesk):
    source = DatasetSource(
        path=str(helpdesk / "documents"), eval_split="test", streaming=True, max_eval_rows=4
    )
    streamed = CausalLM(dataset=source, block_size=32)
    whole = CausalLM(dataset=DatasetSource(path=source.path, eval_split="test"), block_size=32)
    splits, all_rows = load_splits(source), load_splits(whole.dataset)
    assert len(splits.held_out.rows) == 4
    got = streamed.features(splits.train, tokenizer, (), training=True).dataset
    want = whole.features(all_rows.train, tokenizer, (), training=True).dataset
    got_rows = [list(row["input_ids"]) for row in got]
    assert got_rows == [list(row["input_ids"]) for row in want]


def test_stream_without_an_eval_split_does_not_train_on_what_it_is_scored_on(helpdesk):
    path = str(helpdesk / "documents" / "train.jsonl")
    splits = load_splits(DatasetSource(path=path, streaming=True, max_eval_rows=5))
    held_out = [row["text"] for row in splits.held_out.rows]
    trained = [row["text"] for row in splits.train.rows]
    assert len(held_out) == 5
    assert len(trained) == 35
    assert not set(held_out) & set(trained)


SCRIPTS = st.text(
    alphabet=st.one_of(
        st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]),
        st.sampled_from("àéîõü京都ñß€😀👩‍🚀 \u0301\u200dक्षি"),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(before=SCRIPTS, answer=SCRIPTS, after=SCRIPTS)
def test_decoding_a_gold_span_gives_a_substring_that_holds_the_answer(
    tokenizer, before, answer, after
):
    answer = answer.strip()
    if not answer:
        return
    context = f"{before} {answer} {after}"
    start = len(before) + 1
    row = {
        "question": "q?",
        "context": context,
        "answers": {"text": [answer], "answer_start": [start]},
    }
    task = QuestionAnswering(dataset=ANYWHERE, max_length=512, max_answer_length=400)
    features = task.features(Examples([row], "rows"), tokenizer, (), training=False)
    questions, windows = features.context
    first, last = features.dataset[0]["labels"][:2]
    length = len(features.dataset[0]["input_ids"])
    logits = np.zeros((1, length, 2))
    logits[0, first, 0] = logits[0, last, 1] = 9.0
    best = task.decode(logits, questions, windows, [length])[0][0]
    assert best.text == context[best.start : best.end]
    assert best.text == answer


def test_windows_cover_the_context_and_overlap_by_the_stride():
    assert window_starts(10, 10, 3) == [0]
    assert window_starts(11, 10, 3) == [0, 7]
    assert window_starts(25, 10, 3) == [0, 7, 14, 21]


def test_no_answer_is_chosen_by_the_threshold():
    def best(threshold):
        task = QuestionAnswering(
            dataset=ANYWHERE,
            version_2_with_negative=True,
            max_length=16,
            null_score_diff_threshold=threshold,
        )
        questions = [Question("ab cd", {"text": []})]
        windows = [Window(0, 2, [(0, 2), (2, 5)])]
        logits = np.zeros((1, 5, 2))
        logits[0, 2] = [2.0, 1.0]  # span "ab" scores 3
        logits[0, 4] = [2.5, 2.0]  # no answer scores 4.5
        return task.decode(logits, questions, windows, [5])[0][0].text

    assert best(1.0) == ""
    assert best(2.0) == "ab"


def test_labels_are_in_natural_order():
    assert sorted(["10", "2", "1", "b", "a10", "a9"], key=natural_order) == [
        "1",
        "2",
        "10",
        "a9",
        "a10",
        "b",
    ]


def test_a_pair_is_cut_at_its_longer_text():
    assert join_texts([[1, 2, 3, 4, 5, 6], [7, 8]], 0, 6) == ([1, 2, 3, 0, 7, 8], True)
    assert join_texts([[1], [7]], 0, 6) == ([1, 0, 7], False)
    assert join_texts([[]], 0, 6) == ([0], False)


def test_rows_cut_are_counted(tokenizer):
    task = TextClassification(dataset=ANYWHERE, max_length=4)
    rows = [{"text": "one two three four five six", "label": 1}, {"text": "a", "label": 0}]
    features = task.features(Examples(rows, "rows"), tokenizer, ("0", "1"), training=True)
    assert features.report == {"rows": 2, "rows_cut": 1}


def test_answers_lost_are_counted(tokenizer):
    context = "word " * 60
    rows = [
        {
            "question": "q?",
            "context": context,
            "answers": {"text": [context[:250]], "answer_start": [0]},
        }
    ]
    task = QuestionAnswering(dataset=ANYWHERE, max_length=32, stride=8)
    features = task.features(Examples(rows, "rows"), tokenizer, (), training=True)
    assert features.report["answers_lost"] == 1
    assert features.report["windows"] > 1


@pytest.mark.parametrize(
    ("size", "most", "processes", "expected"),
    [(8, 8, 1, (8, 1)), (8, 1, 1, (1, 8)), (8, 4, 2, (4, 1)), (12, 5, 1, (4, 3))],
)
def test_accumulation_is_derived(size, most, processes, expected):
    train = Train(global_batch_size=size, per_device_train_batch_size=most)
    assert split_batch(train, processes) == expected


def test_multi_label_and_regression_losses_by_hand():
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    many = TextClassification(dataset=ANYWHERE, problem_type="multi_label_classification")
    got = many.loss(type("Out", (), {"logits": logits}), targets, torch.tensor(4))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(got, expected)
    number = TextClassification(dataset=ANYWHERE, problem_type="regression")
    got = number.loss(type("Out", (), {"logits": logits[:, :1]}), torch.tensor([1.0, 0.0]), 2)
    assert float(got) == pytest.approx((0.5**2 + 2.0**2) / 2)


def test_recipe_round_trips_through_json(tasks):
    for task in tasks.values():
        lora = Lora(r=3, target_modules=("c_attn", "c_proj", "c_fc"))
        recipe = Recipe(name="a", task=task, model=Model(name_or_path="b"), lora=lora)
        assert Recipe.from_json(recipe.to_json()) == recipe
        assert json.loads(recipe.to_json())["lora"]["target_modules"] == [
            "c_attn",
            "c_proj",
            "c_fc",
        ]


def test_a_trained_tokenizer_reads_a_context_as_any_text(tokenizer, helpdesk):
    from pipelines.tasks.spans import splitting_tokenizer

    for row in load_splits(DatasetSource(path=str(helpdesk / "answer"))).train.rows:
        text = row["context"] + "''; (1,234.5)"
        assert splitting_tokenizer(tokenizer)(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", TASKS)
def test_the_fused_activation_changes_no_logits(name, tasks, checkpoint, tokenizer, tmp_path):
    recipe, splits, labels = make(tasks[name], checkpoint, tmp_path)
    assert json.loads((checkpoint / "config.json").read_text())["activation_function"] == "gelu_new"
    fused = build_model(recipe, tokenizer, labels).eval()
    assert fused.config.activation_function == "gelu_pytorch_tanh"
    plain = copy.deepcopy(fused)
    for block in plain.transformer.h:
        block.mlp.act = ACT2FN["gelu_new"]
    rows = recipe.task.features(splits.held_out, tokenizer, labels, training=False).dataset[:6]
    found = first_logits(recipe.task, fused, tokenizer, rows)
    expected = first_logits(recipe.task, plain, tokenizer, rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    fused.save_pretrained(tmp_path)
    loaded = type(fused).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(first_logits(recipe.task, loaded, tokenizer, rows), found)
