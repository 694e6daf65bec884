"""An ONNX file gives what its model gives, and its folder has what a program needs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForSequenceClassification,
)

from helpers.exported import run_snippet
from helpers.named_paths import paths_that_are_gone
from pipelines.errors import ExportError, RecipeError
from pipelines.exporting.card import export_card
from pipelines.exporting.export import export
from pipelines.exporting.onnx_file import write_onnx
from pipelines.exporting.onnx_model import Difference, OnnxModel, check_equal, compare, reads_of
from pipelines.hub.load import load_result
from pipelines.inference.loaded_model import load

pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

NAMES = ("language", "reply", "classifier", "answers")
TEXTS = ["A text to classify.", "And another one."]
"""Of the snippet of a classifier."""


@pytest.fixture(scope="module")
def exported(results, tmp_path_factory):
    """A folder of each result in float32 and, with -int8, of a classifier and a language model."""
    folder = tmp_path_factory.mktemp("onnx")
    for name in NAMES:
        export(results / name, folder / name, to="onnx")
    for name in ("classifier", "reply"):
        export(results / name, folder / f"{name}-int8", to="onnx", quantize="int8")
    return folder


def session_of(folder):
    """Return the folder's file in onnxruntime."""
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def empty_cache(session, rows):
    """Return a cache of no tokens."""
    return {
        each.name: np.zeros((rows, each.shape[1], 0, each.shape[3]), dtype=np.float32)
        for each in session.get_inputs()[2:]
    }


def padded(tokenizer, texts, side):
    """Return the ids and the mask of texts, padded on a side."""
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="np")
    return {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_gives_the_logits_of_the_result(exported, results, name):
    loaded = load_result(results / name, precision="fp32")
    session = session_of(exported / name)
    inputs = padded(loaded.tokenizer, ["A lamp", "Where is my order? It is late.", "x"], "right")
    with torch.no_grad():
        outputs = loaded.model(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    expected = [value for key, value in outputs.items() if key.endswith("logits")]
    heads = [each.name for each in session.get_outputs() if each.name.endswith("logits")]
    assert heads == [key for key in outputs if key.endswith("logits")]
    found = session.run(heads, inputs | empty_cache(session, 3))
    for one, other in zip(found, expected, strict=True):
        other = other.numpy()
        if one.ndim > 1 and one.shape[1] == inputs["input_ids"].shape[1]:  # not of padding
            mask = inputs["attention_mask"].astype(bool)
            one, other = one[mask], other[mask]
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("name", ["language", "reply"])
def test_greedy_tokens_of_rows_padded_on_the_left_are_those_of_transformers(
    exported, results, name
):
    loaded = load_result(results / name, precision="fp32")
    session = session_of(exported / name)
    inputs = padded(loaded.tokenizer, ["Good morning", "Where is my order?"], "left")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    expected = loaded.model.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
    )[:, ids.shape[1] :]
    cache, found = empty_cache(session, 2), []
    for _ in range(12):
        logits, *present = session.run(None, {"input_ids": ids, "attention_mask": mask, **cache})
        last = logits[:, -1].copy()
        last[:, loaded.tokenizer.eos_token_id] = -np.inf  # as min_new_tokens has it
        ids = last.argmax(-1)[:, None]
        found.append(ids)
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        cache = dict(zip(cache, present, strict=True))
    assert np.concatenate(found, axis=1).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["classifier", "classifier-int8"])
def test_the_snippet_of_a_classifier_prints_the_labels_of_the_result(exported, results, name):
    printed = run_snippet(exported / name)
    expected = load(results / "classifier", precision="fp32").predict(TEXTS)
    found = printed.strip().strip("[]").replace("'", "").split(", ")
    if name == "classifier":
        assert found == [each["label"] for each in expected]
    assert set(found) <= set(load_result(results / "classifier").labels)


@pytest.mark.parametrize("name", ["reply", "reply-int8"])
def test_the_snippet_of_a_language_model_writes_as_the_result_does(exported, results, name):
    printed = run_snippet(exported / name)
    (written,) = load(results / "reply").generate(["Good morning"], max_new_tokens=20)
    if name == "reply":
        assert printed.strip() == written.text
    assert printed.strip()


def test_the_snippet_that_answers_gives_the_answer_of_the_result(exported, results):
    printed = run_snippet(exported / "answers")
    row = {"question": "Who wrote?", "context": "Ada wrote on Monday."}
    (expected,) = load(results / "answers").predict([row])
    assert printed.strip() == expected["answer"]


def test_labels_ids_and_template_are_next_to_the_file(exported, results):
    loaded = load_result(results / "classifier")
    record = json.loads((exported / "classifier" / "export.json").read_text())
    assert tuple(record["labels"]) == loaded.labels
    assert record["pad_token_id"] == loaded.tokenizer.pad_token_id
    assert record["eos_token_id"] == loaded.tokenizer.eos_token_id
    assert record["result_sha256"] == loaded.sha256
    assert record["metrics"]["accuracy"] == loaded.metrics["accuracy"]
    assert record["checks"]["largest_difference"] < 1e-4
    config = AutoConfig.from_pretrained(exported / "classifier")
    assert tuple(config.id2label[i] for i in range(len(loaded.labels))) == loaded.labels
    assert config.pad_token_id == loaded.tokenizer.pad_token_id
    tokenizer = AutoTokenizer.from_pretrained(exported / "reply")
    assert tokenizer.chat_template == load_result(results / "reply").tokenizer.chat_template
    assert (exported / "reply" / "generation_config.json").is_file()
    assert str(results) not in (exported / "reply" / "export.json").read_text()


def test_an_export_names_no_path_that_is_gone(exported, tmp_path_factory):
    for folder in exported.iterdir():
        assert paths_that_are_gone(folder, root=tmp_path_factory.getbasetemp()) == set()


def test_int8_is_smaller_and_says_how_far_and_how_well(exported):
    sizes = [
        (exported / name / "model.onnx").stat().st_size
        for name in ("classifier-int8", "classifier")
    ]
    assert sizes[0] < 0.7 * sizes[1]  # in so small a model the graph itself counts
    assert not (exported / "classifier-int8" / "fp32.onnx").exists()
    checks = json.loads((exported / "classifier-int8" / "export.json").read_text())["checks"]
    assert checks["largest_difference"] < 1e-4 < checks["largest_difference_int8"] < 1
    assert checks["int8"]["primary"] == "accuracy"
    assert checks["int8"]["rows"] == 32
    card = (exported / "classifier-int8" / "README.md").read_text()
    assert f"In int8 the accuracy on 32 rows is {checks['int8']['accuracy']:.4f}" in card
    reply = json.loads((exported / "reply-int8" / "export.json").read_text())["checks"]
    assert "int8" not in reply  # a language model's score is not computed


@pytest.fixture
def described_as(exported, results, tmp_path):
    """Return the classifier's folder as one of a task with other options, and the file's logits."""

    def describe(**options):
        loaded = load_result(results / "classifier")
        task = replace(loaded.recipe.task, **options)
        other = replace(loaded, recipe=replace(loaded.recipe, task=task))
        record = json.loads((exported / "classifier" / "export.json").read_text())
        for file in (exported / "classifier").iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "README.md").write_text(export_card(other, record, license_id=None))
        inputs = padded(loaded.tokenizer, TEXTS, "right")
        return tmp_path, loaded.labels, session_of(tmp_path).run(["logits"], inputs)[0]

    return describe


@pytest.mark.parametrize("thresholds", [None, [0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6]])
def test_a_snippet_of_several_labels_has_their_thresholds(described_as, results, thresholds):
    labels = load_result(results / "classifier").labels
    above = dict(zip(labels, thresholds or [0.5] * len(labels), strict=True))
    folder, _, logits = described_as(
        problem_type="multi_label_classification", thresholds=above if thresholds else None
    )
    expected = [
        [
            label
            for label, logit in zip(labels, row, strict=True)
            if 1 / (1 + np.exp(-logit)) > above[label]
        ]
        for row in logits
    ]
    assert run_snippet(folder).strip() == str(expected)


def test_a_snippet_of_a_regression_prints_numbers(described_as):
    folder, _, logits = described_as(problem_type="regression", label_column="stars")
    assert run_snippet(folder).strip() == str(logits[:, 0].tolist())


def test_a_snippet_of_pairs_joins_the_texts_as_in_training(described_as, results):
    folder, labels, _ = described_as(text_pair_column="second")
    tokenizer = load_result(results / "classifier").tokenizer
    text = "A text" + tokenizer.eos_token + "and its second part."
    (logits,) = session_of(folder).run(["logits"], padded(tokenizer, [text], "right"))
    assert run_snippet(folder).strip() == str([labels[logits[0].argmax()]])


def test_another_model_is_noticed(exported, results):
    loaded = load_result(results / "language")
    ids = torch.arange(24).reshape(2, 12)
    file = OnnxModel(exported / "language" / "model.onnx")
    check_equal(compare(file, reads_of(loaded.model, {"input_ids": ids})))
    loaded.model.transformer.h[1].mlp.c_fc.bias.data[0] += 0.1
    with pytest.raises(ExportError, match="gives other logits than the model, by"):
        check_equal(compare(file, reads_of(loaded.model, {"input_ids": ids})))
    loaded.model.transformer.h[1].mlp.c_fc.bias.data[0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        compare(file, reads_of(loaded.model, {"input_ids": ids}))


def test_a_difference_is_relative_to_logits_above_one():
    check_equal(Difference(largest=9e-5, of=0.5))
    check_equal(Difference(largest=9e-3, of=100.0))  # 9e-5 of it
    with pytest.raises(ExportError):
        check_equal(Difference(largest=2e-4, of=0.5))
    with pytest.raises(ExportError):
        check_equal(Difference(largest=2e-2, of=100.0))


def test_another_decoder_with_shared_keys_is_written_too(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes, **heads)).eval()
    reads = reads_of(model, {"input_ids": torch.arange(24).reshape(2, 12)})
    write_onnx(model, tmp_path / "model.onnx", writes=True)
    file = OnnxModel(tmp_path / "model.onnx")
    check_equal(compare(file, reads))
    assert list(file.cache.values())[0] == ["batch", 2, "past", 8]


def test_a_family_that_counts_by_its_mask_is_refused(tmp_path):
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    opt = OPTConfig(vocab_size=100, word_embed_proj_dim=32, max_position_embeddings=64, **sizes)
    with pytest.raises(ExportError, match="torch cannot write opt as ONNX: "):
        write_onnx(OPTForSequenceClassification(opt).eval(), tmp_path / "model.onnx", writes=False)


@pytest.mark.parametrize("family", ["a million positions", "positions without end"])
def test_what_is_compared_is_no_longer_than_memory_allows(family):
    if family == "a million positions":
        config = LlamaConfig(
            vocab_size=10, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=1_000_000,
        )  # fmt: skip
    else:
        config = BloomConfig(vocab_size=10, hidden_size=4, n_layer=1, n_head=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    reads = reads_of(model, {"input_ids": torch.arange(8).reshape(2, 4)})
    assert max(batch["input_ids"].shape[1] for batch, _ in reads) == 1024


def test_a_wrong_file_leaves_nothing(results, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.exporting.onnx_model.LARGEST_DIFFERENCE", 0.0)
    with pytest.raises(ExportError):
        export(results / "classifier", tmp_path / "out", to="onnx")
    assert list(tmp_path.iterdir()) == []


def test_safetensors_is_what_merge_writes(results, tmp_path):
    export(results / "reply", tmp_path / "merged", to="safetensors")
    assert load_result(tmp_path / "merged").recipe.lora is None
    with pytest.raises(RecipeError, match="is not an adapter, but already a whole model"):
        export(results / "language", tmp_path / "whole", to="safetensors")
