"""Packed rows see nothing of each other; a packed batch teaches what the padded one does."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

import pipelines.flow
import pipelines.training.build
from helpers.factories import answered, classified
from pipelines.data.bin_packing import best_fit
from pipelines.data.load import load_splits
from pipelines.data.padding import pad_inputs
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import RecipeError
from pipelines.models.packing import accept_plans, plan
from pipelines.models.probes import isolates_packed_rows
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Scratch, Train
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

LENGTHS = (5, 3, 20, 9, 1, 11, 2)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(0, 30))
def test_bins_hold_every_row_once_and_no_more_than_their_capacity(lengths, more):
    capacity = max(lengths) + more
    bins = best_fit(lengths, capacity)
    assert sorted(row for each in bins for row in each) == list(range(len(lengths)))
    sums = sorted(sum(lengths[row] for row in each) for each in bins)
    assert sums[-1] <= capacity
    assert len(bins) == 1 or sums[0] + sums[1] > capacity  # or one bin would hold both


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(0, 7))
def test_a_plan_leads_every_token_there_and_back(lengths, more):
    width = max(lengths) + more
    found = plan(lengths, width)
    if found is None:
        return
    packed, back, bounds = found
    assert packed.numel() < len(lengths) * width
    assert packed.shape[1] % 8 == 0
    assert back.shape == (len(lengths), width)
    segments = Counter(bounds.diff().tolist())
    assert segments.total() <= len(lengths) + len(packed)  # and the padding of each packed row
    assert not Counter(lengths) - segments
    padded = torch.arange(len(lengths) * width).view(-1, width)
    returned = padded.flatten()[packed].flatten()[back]
    for row, length in enumerate(lengths):
        assert returned[row, :length].tolist() == padded[row, :length].tolist()
        assert (packed.flatten()[back[row, :length]] % width).tolist() == list(range(length))


@pytest.mark.parametrize(("most", "multiple"), [(64, 8), (100, 4), (7, 1)])
def test_batches_have_few_lengths_none_longer_than_the_longest_row(most, multiple):
    task = TextClassification(dataset=DatasetSource(path="rows"), max_length=most)
    found = set()
    for length in range(1, most + 1):
        batch = task.collate(0, task.pad_to_multiple_of)(
            [{"input_ids": [5] * n} for n in (length, 1)]
        )
        assert batch["attention_mask"].sum(1).tolist() == [length, 1]
        found.add(batch["input_ids"].shape[1])
    assert found == set(range(multiple, most + 1, multiple))


def test_a_batch_of_equal_rows_is_not_packed():
    assert plan([7, 7, 7], 8) is None
    assert plan([7, 7, 6], 8) is None


def tiny(kind, initializer_range=0.3):
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64}
    sizes["initializer_range"] = initializer_range
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return kind(
        GPT2Config(vocab_size=300, pad_token_id=0, use_cache=False, **sizes, **dropout)
    ).train()


@pytest.mark.parametrize("kind", [GPT2ForSequenceClassification, GPT2ForQuestionAnswering])
def test_a_packed_batch_has_the_outputs_and_gradients_of_the_padded_one(kind):
    model = tiny(kind)
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"input_ids": torch.randint(1, 300, (n,), generator=generator).tolist()} for n in LENGTHS
    ]
    inputs = pad_inputs(rows, 0, 8)
    real = inputs["attention_mask"].bool()
    accept_plans(model.base_model)
    shapes = []
    model.base_model.wte.register_forward_hook(lambda m, args, out: shapes.append(args[0].numel()))

    def outputs_and_gradients(how):
        found = model(**inputs, plan=how)
        values = [found.logits] if "logits" in found else [found.start_logits[real]]
        model.zero_grad()
        values[0].square().sum().backward()
        return values + [p.grad.clone() for p in model.parameters() if p.grad is not None]

    padded = outputs_and_gradients(None)
    packed = outputs_and_gradients(plan(LENGTHS, inputs["input_ids"].shape[1]))
    assert shapes[0] == real.numel()
    assert shapes[1] < 0.5 * shapes[0]
    for expected, got in zip(padded, packed, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_documents_in_a_block_have_the_losses_of_each_alone(tokenizer):
    texts = [" ".join(["lamp", "desk", "parcel"][: 1 + i % 3] * (1 + 5 * i % 7)) for i in range(9)]
    examples = Examples([{"text": text} for text in texts], "texts")
    source = DatasetSource(path="a")
    task = CausalLM(dataset=source, block_size=48, packing="bfd_split")
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "initializer_range": 0.3}
    config = GPT2Config(vocab_size=len(tokenizer), use_cache=False, **sizes)
    model = GPT2LMHeadModel(config).eval()
    losses = []
    for training in (True, False):
        rows = task.features(examples, tokenizer, (), training=training).dataset
        assert (len(rows) < len(texts)) == training
        batch = task.collate(tokenizer.pad_token_id)([dict(row) for row in rows])
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[:, :-1]
        found = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        losses.append(found[labels != -100].sort().values)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


def test_a_stream_packs_documents_that_are_kept_apart_alike(tokenizer, helpdesk):
    source = DatasetSource(
        path=str(helpdesk / "documents"), eval_split="test", streaming=True, max_eval_rows=4
    )
    rows = []
    for each in (source, DatasetSource(path=source.path, eval_split="test")):
        task = CausalLM(dataset=each, block_size=96, packing="bfd_split")
        train = load_splits(each).train
        found = task.features(train, tokenizer, (), training=True).dataset
        rows.append([(list(row["input_ids"]), list(row["seq_lengths"])) for row in found])
    assert rows[0] == rows[1]


def test_a_run_keeps_documents_apart_or_refuses(tasks, tmp_path, monkeypatch):
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 128}
    recipe = Recipe(
        name="apart",
        task=replace(tasks["causal_lm"], block_size=128, packing="bfd_split"),
        model=Scratch(**sizes, dropout=0.0),
        train=Train(max_steps=4, global_batch_size=4, learning_rate=1e-2, save_steps=None),
        output_dir=str(tmp_path / "apart"),
    )
    metrics = pipelines.flow.run(recipe)
    assert metrics["perplexity"] < metrics["baseline"]["before training"]
    monkeypatch.setattr(pipelines.training.build, "isolates_packed_rows", lambda body: False)
    with pytest.raises(RecipeError, match=r"task\.packing: gpt2 does not isolate the documents"):
        pipelines.flow.run(replace(recipe, output_dir=str(tmp_path / "refused")))


class NoPositions(GPT2Model):
    """A body that counts its positions by itself, whatever it is told."""

    def forward(self, input_ids, position_ids=None, **options):
        return super().forward(input_ids, **options)


class NoSuchArgument(GPT2Model):
    """A body that cannot be told positions."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask=attention_mask)


def test_a_body_that_would_mix_packed_rows_is_found_out():
    for scale in (0.02, 0.3):
        assert isolates_packed_rows(tiny(GPT2Model, scale))
        assert isolates_packed_rows(tiny(GPT2ForQuestionAnswering, scale).base_model)
        assert not isolates_packed_rows(tiny(NoPositions, scale))
        assert not isolates_packed_rows(tiny(NoSuchArgument, scale))
        cached = tiny(GPT2Model, scale)
        cached.config.use_cache = True  # its mask then takes no note of positions
        assert not isolates_packed_rows(cached)


def recipe_of(kind, row, folder) -> Recipe:
    """Return a recipe without dropout, on rows of all lengths."""
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row(i)) for i in range(60)))
    return Recipe(
        name="packed",
        task=kind(dataset=DatasetSource(path=str(file)), max_length=64),
        model=Scratch(n_layer=1, n_head=2, n_embd=32, n_positions=256, dropout=0.0),
        train=Train(max_steps=3, global_batch_size=8, learning_rate=1e-3, save_steps=None),
        output_dir=str(folder / "packed"),
    )


@pytest.fixture
def plans(monkeypatch):
    """The plans of the batches of a run."""
    found = []
    monkeypatch.setattr(
        "pipelines.models.packing.plan", lambda *batch: found.append(plan(*batch)) or found[-1]
    )
    return found


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (TextClassification, classified),
        (partial(QuestionAnswering, version_2_with_negative=True), answered),
    ],
)
def test_a_run_learns_the_same_with_and_without_packing(kind, row, plans, tmp_path, monkeypatch):
    recipe = recipe_of(kind, row, tmp_path)
    packed = pipelines.flow.run(recipe)
    assert any(found is not None for found in plans)
    monkeypatch.setattr(pipelines.training.build, "isolates_packed_rows", lambda body: False)
    padded = pipelines.flow.run(replace(recipe, output_dir=str(tmp_path / "padded")))
    assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_learns_the_same_from_packed_rows(plans, tmp_path):
    recipe = recipe_of(TextClassification, classified, tmp_path)
    eager = pipelines.flow.run(recipe)
    compiling = replace(recipe.train, torch_compile=True)
    compiled = pipelines.flow.run(
        replace(recipe, train=compiling, output_dir=str(tmp_path / "compiled"))
    )
    assert any(found is not None for found in plans)
    assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-5)
