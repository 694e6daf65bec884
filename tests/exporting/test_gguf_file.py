"""A GGUF file holds exactly the model, and llama.cpp continues texts with the same tokens."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from helpers.exported import run_snippet
from pipelines.data.rows import Examples
from pipelines.errors import ExportError, RecipeError
from pipelines.exporting.card import export_card
from pipelines.exporting.export import export
from pipelines.exporting.formats import FORMATS
from pipelines.exporting.gguf_file import Origin, largest_error, write_gguf
from pipelines.exporting.gguf_vocabulary import read_vocabulary
from pipelines.hub.load import load_result
from pipelines.inference.loaded_model import load
from pipelines.models.tokenizers import train_char_tokenizer

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

TEXTS = [
    "Good morning",
    "  two  spaces\n\nand lines\t",
    "I'll order 12345 lamps, don't we? §5 ½",
    "Grüße, 東京 🙂🏽 naïve",
    "<|endoftext|>A text<|endoftext|>",
]


@pytest.fixture(scope="module")
def exported(results, tmp_path_factory):
    """Folders with the language model and the adapter that replies, in F32."""
    folder = tmp_path_factory.mktemp("gguf")
    for name in ("language", "reply"):
        export(results / name, folder / name, to="gguf")
    return folder


def tensors_of(file):
    """Return the tensors of a file in float32, by name."""
    read = gguf.GGUFReader(file).tensors
    return {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in read}


def fields_of(file):
    """Return the metadata of a file, by name."""
    return {name: each.contents() for name, each in gguf.GGUFReader(file).fields.items()}


def small_gpt2(**options):
    """Return a GPT-2 of one layer with random weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "n_positions": 16, "n_layer": 1, "n_head": 2, "n_embd": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes | options)).eval()


def test_every_tensor_is_the_models_with_matrices_as_outputs_by_inputs(exported, results):
    model = load_result(results / "language").model
    found = tensors_of(exported / "language" / "language-F32.gguf")
    layer = model.transformer.h[1]
    expected = {
        "token_embd.weight": model.transformer.wte.weight,
        "position_embd.weight": model.transformer.wpe.weight,
        "output_norm.bias": model.transformer.ln_f.bias,
        "blk.1.attn_norm.weight": layer.ln_1.weight,
        "blk.1.attn_qkv.weight": layer.attn.c_attn.weight.T,  # (96, 32)
        "blk.1.attn_qkv.bias": layer.attn.c_attn.bias,
        "blk.1.attn_output.weight": layer.attn.c_proj.weight.T,
        "blk.1.ffn_norm.bias": layer.ln_2.bias,
        "blk.1.ffn_up.weight": layer.mlp.c_fc.weight.T,  # (128, 32)
        "blk.1.ffn_down.weight": layer.mlp.c_proj.weight.T,  # (32, 128)
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values.detach().numpy(), err_msg=name)
    assert len(found) == 4 + 2 * 12  # embeddings and the last norm; 12 tensors a layer; no head


def test_transformers_reads_it_back_as_the_same_model(exported, results):
    folder = exported / "language"
    read = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file="language-F32.gguf",
        n_positions=256,  # which its reader ignores
    )
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = load_result(results / "language").model(ids).logits
        torch.testing.assert_close(read.eval()(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_it_has_the_context_the_special_tokens_and_the_licence(exported, results):
    fields = fields_of(exported / "reply" / "reply-F32.gguf")
    tokenizer = load_result(results / "reply").tokenizer
    assert fields["general.architecture"] == "gpt2"
    assert fields["general.name"] == "reply"
    assert fields["general.license"] == "apache-2.0"
    assert fields["gpt2.context_length"] == 256
    assert fields["gpt2.attention.head_count"] == 2
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    types = fields["tokenizer.ggml.token_type"]
    assert [n for n, kind in enumerate(types) if kind == 3] == [tokenizer.eos_token_id]  # control
    record = json.loads((exported / "reply" / "export.json").read_text())
    assert record["file"] == "reply-F32.gguf"
    assert record["checks"] == {"largest_error_of_a_weight": 0.0}
    assert "exactly the model's" in (exported / "reply" / "README.md").read_text()


@pytest.mark.parametrize("precision", FORMATS["gguf"].precisions)
def test_each_precision_rounds_matrices_and_keeps_vectors(tmp_path, tokenizer, precision):
    model = small_gpt2()
    torch.nn.init.normal_(model.transformer.h[0].ln_1.bias)
    file = tmp_path / "model.gguf"
    error = write_gguf(model, tokenizer, file, precision, Origin("small", None, None))
    read = {each.name: each.tensor_type.name for each in gguf.GGUFReader(file).tensors}
    small = precision[:2] in ("Q4", "Q5")
    assert read["blk.0.ffn_up.weight"] == precision
    assert read["token_embd.weight"] == ("Q8_0" if small else precision)
    assert read["position_embd.weight"] == "F32"
    assert read["blk.0.attn_norm.bias"] == "F32"
    assert (error == 0) == (precision == "F32")
    kind = "ALL_F32" if precision == "F32" else f"MOSTLY_{precision}"
    assert fields_of(file)["general.file_type"] == gguf.LlamaFileType[kind]


def test_q8_0_rounds_to_127th_parts_of_the_largest_of_32(tmp_path, tokenizer):
    model = small_gpt2()
    row = torch.arange(32.0) * 2  # its largest is 62: steps of 62 / 127
    model.transformer.h[0].attn.c_attn.weight.data[:, 0] = row
    file = tmp_path / "model.gguf"
    write_gguf(model, tokenizer, file, "Q8_0", Origin("small", None, None))
    step = np.float32(np.float16(62 / 127))  # the scale is a float16
    expected = np.round(row.numpy() * 127 / 62) * step
    found = tensors_of(file)["blk.0.attn_qkv.weight"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gguf_quantises_all_that_is_offered_and_no_k_quants():
    values = np.zeros((1, 256), dtype=np.float32)
    for precision in FORMATS["gguf"].precisions:
        gguf.quants.quantize(values, gguf.GGMLQuantizationType[precision])
    with pytest.raises(NotImplementedError):
        gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_K)


def test_a_file_with_other_weights_is_noticed(tmp_path, tokenizer):
    model = small_gpt2()
    file = tmp_path / "model.gguf"
    write_gguf(model, tokenizer, file, "F16", Origin("small", None, None))
    model.transformer.h[0].mlp.c_fc.weight.data[3, 5] += 0.01
    with pytest.raises(ExportError, match=r"blk.0.ffn_up.weight is off by 0\.01"):
        largest_error(model, file, "F16")


def test_embeddings_without_a_token_are_unused(tokenizer):
    vocabulary = read_vocabulary(tokenizer, 403)
    assert vocabulary.tokens[399:] == [
        tokenizer.convert_ids_to_tokens(399),
        "[UNUSED400]",
        "[UNUSED401]",
        "[UNUSED402]",
    ]
    assert vocabulary.types[400:] == [5, 5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_function": "relu"}, "activation_function gelu_new, and this model has relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx False"),
        ({"scale_attn_weights": False}, "scale_attn_weights True"),
        ({"n_embd": 40}, "Q8_0 packs 32 weights together, and this model is 40 wide"),
        ({"n_inner": 100}, "Q8_0 packs 32 weights together, and this model is 100 wide"),
    ],
)
def test_a_gpt2_that_llama_cpp_does_not_compute_is_refused(tmp_path, tokenizer, options, message):
    file = tmp_path / "model.gguf"
    with pytest.raises(RecipeError, match=message):
        write_gguf(small_gpt2(**options), tokenizer, file, "Q8_0", Origin("small", None, None))
    assert not file.exists()


def test_another_architecture_is_refused(tmp_path, tokenizer):
    config = LlamaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(RecipeError, match="written for GPT-2, and this model is 'llama'"):
        write_gguf(
            LlamaForCausalLM(config), tokenizer, tmp_path / "x", "F32", Origin("x", None, None)
        )


def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(tokenizer):
    with pytest.raises(RecipeError, match="it splits texts by characters"):
        read_vocabulary(train_char_tokenizer(["abc"]), 4)


def test_llama_cpp_reads_texts_as_the_same_tokens(exported, results):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = llama_cpp.Llama(str(exported / "language" / "language-F32.gguf"), verbose=False)
    tokenizer = load_result(results / "language").tokenizer
    for text in TEXTS:
        found = model.tokenize(text.encode(), add_bos=True, special=True)
        assert found == tokenizer(text, add_special_tokens=False)["input_ids"], text


@pytest.mark.parametrize("name", ["language", "reply"])
def test_llama_cpp_continues_with_the_same_greedy_tokens(exported, results, name):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    loaded = load_result(results / name)
    prompt = json.loads((exported / name / "export.json").read_text())["prompt"]
    ids = loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    model = llama_cpp.Llama(
        str(exported / name / f"{name}-F32.gguf"), n_ctx=0, logits_all=True, verbose=False
    )
    options = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    expected = loaded.model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
    found = []
    for token in model.generate(ids, temp=0, repeat_penalty=1.0):
        found.append(token)
        if token == loaded.tokenizer.eos_token_id or len(found) == 64:
            break
    assert found == expected
    assert len(found) > 5


def test_the_snippet_of_its_readme_replies_as_the_result_does(exported, results):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    printed = run_snippet(exported / "reply")
    expected = load(results / "reply").generate(["Good morning"], max_new_tokens=8)[0].text
    assert printed.strip() == expected.replace("\ufffd", "").strip()  # bytes that are no text


def test_the_prompt_of_a_readme_is_what_the_task_reads(exported, results):
    for name in ("language", "reply"):
        loaded = load_result(results / name)
        record = json.loads((exported / name / "export.json").read_text())
        task = loaded.recipe.task
        rows = Examples([task.row("Good morning")], "here")
        assert [loaded.tokenizer(record["prompt"])["input_ids"]] == task.prompts(
            rows, loaded.tokenizer
        )


def test_the_snippet_of_a_chat_uses_the_template_in_the_file(exported, results, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    loaded = load_result(results / "reply")
    task = replace(loaded.recipe.task, chat=True)
    chat = replace(loaded, recipe=replace(loaded.recipe, task=task))
    record = json.loads((exported / "reply" / "export.json").read_text())
    (tmp_path / "README.md").write_text(export_card(chat, record, license_id=None))
    (tmp_path / record["file"]).symlink_to(exported / "reply" / record["file"])
    messages = [{"role": "user", "content": "Good morning"}]
    inputs = loaded.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    written = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    reply = written[0, inputs["input_ids"].shape[1] :]
    expected = loaded.tokenizer.decode(reply, skip_special_tokens=True)
    assert run_snippet(tmp_path).strip() == expected.replace("\ufffd", "").strip()
