"""A checkpoint or a tokenizer that would load as something else is refused, and says why."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
)

from helpers.factories import list_files_again, make_tasks, method
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError, RecipeError
from pipelines.evaluation.evaluate import evaluate as evaluate_result
from pipelines.flow import run
from pipelines.hub.load import load_result
from pipelines.hub.pin import pin_revisions
from pipelines.models.build import load_base
from pipelines.models.tokenizer_checks import check_tokenizer, check_vocabulary
from pipelines.models.tokenizers import load_tokenizer, train_char_tokenizer
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import NF4, Int8, Model, Scratch, Train
from pipelines.tasks.base import Features, token_ids
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.text_classification import TextClassification

ROWS = DatasetSource(path="rows.jsonl")
LANGUAGE_MODEL = CausalLM(dataset=ROWS, block_size=64)
CLASSIFIER = TextClassification(dataset=ROWS, max_length=64)
ABC = ("a", "b", "c")


def config_with(folder: Path, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def weights_with(folder: Path, change, name="model.safetensors"):
    """Write the tensors of a file again, those that `change` returns."""
    tensors = {k: change(k, v) for k, v in load_file(folder / name).items()}
    tensors = {k: v for k, v in tensors.items() if v is not None}
    save_file(tensors, folder / name, metadata={"format": "pt"})


def without(*parts):
    return lambda folder: weights_with(
        folder, lambda key, value: None if any(p in key for p in parts) else value
    )


def saved_as(auto, **options):
    def change(folder):
        auto.from_pretrained(folder, **options).save_pretrained(folder)

    return change


def both(*changes):
    def change(folder):
        for each in changes:
            each(folder)

    return change


def in_shards(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")


def lose_a_shard(folder):
    in_shards(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def with_nan(folder):
    def change(key, value):
        return value * float("nan") if key.endswith("h.0.mlp.c_fc.weight") else value

    weights_with(folder, change)


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only(name):
    def change(folder):
        for file in folder.iterdir():
            file.unlink()
        (folder / name).write_text('{"base_model_name_or_path": "gpt2", "peft_type": "LORA"}')

    return change


def adapter_besides(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')


def encoder(folder):
    sizes = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **sizes))
    model.save_pretrained(folder)


def foreign_config(**values):
    return lambda folder: config_with(folder, **values)


def loaded(checkpoint, folder, change, task=LANGUAGE_MODEL, labels=(), **options):
    """Load a copy of a checkpoint after a change."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    change(folder)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    options = {"quantization": None, "tokenizer": tokenizer} | options
    return load_base(task, Model(name_or_path=str(folder)), labels, **options)


DAMAGED = {
    "no tensors": (without(""), "lacks 29 tensors of its config.json: lm_head.weight, .* 26 more"),
    "half the layers": (without(".h.1."), "lacks 12 .*transformer.h.1.attn.c_attn.bias.* 9 more"),
    "more layers in config.json": (foreign_config(n_layer=3), "lacks 12 .*transformer.h.2"),
    "fewer layers in config.json": (foreign_config(n_layer=1), "has 11 tensors that .*h.1.attn"),
    "fewer layers of a bare body": (
        both(saved_as(AutoModel), foreign_config(n_layer=1)),
        r"has 11 tensors that .*: h\.1\.attn",
    ),
    "another width": (foreign_config(n_embd=64), r"28 tensors of another shape.*\(96,\), not \(19"),
    "another vocabulary": (
        foreign_config(vocab_size=500),
        r"1 .*wte.weight \(400, 32\), not \(500",
    ),
    "no head of its own": (foreign_config(tie_word_embeddings=False), "lacks 1 .*: lm_head.weight"),
    "a lost shard": (lose_a_shard, "cannot be loaded: No such file .*model-00002"),
    "a cut file": (truncate, "cannot be loaded: .*incomplete"),
    "NaN": (with_nan, "1 tensors that are not finite .*: transformer.h.0.mlp.c_fc.weight"),
    "pickles": (pickled, "no model.safetensors, only pytorch_model.bin. .*to convert it"),
    "an adapter": (only("adapter_config.json"), "is an adapter, .*gpt2-recipes merge"),
    "an adapter besides": (adapter_besides, "holds both a model .*Move"),
    "GGUF": (only("model.gguf"), "no config.json .*GGUF and ONNX files cannot be trained"),
    "code of its own": (
        foreign_config(model_type="own", auto_map={"AutoConfig": "own.OwnConfig"}),
        "auto_map.*never run here",
    ),
    "no family": (foreign_config(model_type="own"), "does not recognize"),
    "a number as text": (foreign_config(n_layer="two"), "'n_layer' expected int"),
    "an encoder": (encoder, "family 'bert', is not causal"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_checkpoint_that_would_load_as_something_else_is_refused(name, checkpoint, tmp_path):
    change, message = DAMAGED[name]
    with pytest.raises(RecipeError, match=message) as caught:
        loaded(checkpoint, tmp_path, change)
    assert [problem.path for problem in caught.value.problems] == ["model.name_or_path"]


@pytest.mark.parametrize("quantization", [Int8(), NF4()])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(".h.1."), "lacks 12"),
        (foreign_config(n_layer=1), "has 11 tensors that"),
        (foreign_config(n_inner=64), r"6 tensors .*c_fc.weight \(128, 32\), not \(64, 32\)"),
        (with_nan, "not finite"),
    ],
)
def test_quantised_weights_are_checked_alike(change, message, quantization, checkpoint, tmp_path):
    with pytest.raises(RecipeError, match=message):
        loaded(checkpoint, tmp_path, change, quantization=quantization)


@pytest.mark.parametrize(
    "change",
    [
        in_shards,
        saved_as(AutoModel),
        saved_as(AutoModelForSequenceClassification, num_labels=4),
        both(foreign_config(auto_map={"AutoModelForCausalLM": "own.GPT2"})),  # never read
        lambda folder: weights_with(folder, lambda k, v: v.to(torch.bfloat16)),
    ],
)
@pytest.mark.parametrize("quantization", [None, Int8(), NF4()])
def test_whole_checkpoints_of_other_forms_load(change, quantization, checkpoint, tmp_path):
    model = loaded(checkpoint, tmp_path, change, quantization=quantization)
    weights = AutoModelForCausalLM.from_pretrained(checkpoint).get_input_embeddings().weight
    found = model.get_input_embeddings().weight.float()
    torch.testing.assert_close(found, weights, rtol=1e-2, atol=1e-2)


def test_buffers_of_older_checkpoints_are_no_weights(checkpoint, tmp_path):
    def stale(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    loaded(checkpoint, tmp_path, stale)


def test_outliers_in_8_bits_do_not_make_a_decoder_look_like_an_encoder(checkpoint, tmp_path):
    def wide(folder):
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(folder, n_layer=6, n_embd=512, n_head=8)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    loaded(checkpoint, tmp_path, wide, quantization=Int8())


def test_a_head_of_another_size_is_replaced_and_one_with_other_names_kept(
    checkpoint, tmp_path, capsys
):
    four = saved_as(AutoModelForSequenceClassification, num_labels=4)
    model = loaded(checkpoint, tmp_path, four, CLASSIFIER, ABC)
    assert model.score.weight.shape == (3, 32)
    assert "score.weight of the base is (4, 32); a new one, (3, 32)" in capsys.readouterr().out

    base = load_file(tmp_path / "model.safetensors")["score.weight"]
    model = loaded(tmp_path, tmp_path / "kept", both(), CLASSIFIER, (*ABC, "d"))
    assert torch.equal(model.score.weight, base)
    assert "LABEL_2, LABEL_3 become a, b, c, d" in capsys.readouterr().out

    loaded(checkpoint, tmp_path / "new", both(), CLASSIFIER, ABC)
    assert not capsys.readouterr().out
    coded = foreign_config(auto_map={"AutoModelForSequenceClassification": "own.GPT2"})
    loaded(checkpoint, tmp_path / "coded", coded, CLASSIFIER, ABC)
    assert "own code is not run; this is transformers' own gpt2" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="lacks 1 tensors .*: score.weight"):
        loaded(checkpoint, tmp_path / "own", both(), CLASSIFIER, ABC, head="own")


def test_a_family_without_the_head_is_refused(checkpoint, tmp_path, helpdesk):
    task = make_tasks(helpdesk)["question_answering"]
    granite = lambda folder: AutoConfig.for_model("granite").save_pretrained(folder)  # noqa: E731
    with pytest.raises(RecipeError, match="no AutoModelForQuestionAnswering of .*'granite'"):
        loaded(checkpoint, tmp_path, granite, task)


def test_an_empty_folder_that_hides_a_repository_says_so(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai-community" / "gpt2").mkdir(parents=True)
    model = Model(name_or_path="openai-community/gpt2")
    with pytest.raises(RecipeError, match="hides the Hub repository 'openai-community/gpt2'"):
        load_base(LANGUAGE_MODEL, model, (), quantization=None, tokenizer=tokenizer)


# Adapters and results


def recipe_for(task, folder, output, name="full", **options):
    model = Model(name_or_path=str(folder), **options)
    train = Train(max_steps=2, global_batch_size=4, learning_rate=1e-2)
    return Recipe(
        name="run", task=task, model=model, train=train, output_dir=str(output), **method(name)
    )


@pytest.fixture(scope="module")
def results(checkpoint, helpdesk, tmp_path_factory):
    """A classifier as an adapter, and as a whole model."""
    folder = tmp_path_factory.mktemp("results")
    task = make_tasks(helpdesk)["text_classification"]
    for name in ("lora", "full"):
        run(recipe_for(task, checkpoint, folder / name, name))
    return folder


def in_another_shape(key, value):
    return value[:-1].clone() if "score" in key else value


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("lora", lambda k, v: None if ".h.1." in k else v, "lacks 8 tensors of adapter_config"),
        ("lora", lambda k, v: None if "score" in k else v, "lacks a tensor .*score.weight"),
        ("lora", in_another_shape, r"1 tensors of another shape .*\(7, 32\), not \(8, 32\)"),
        ("full", lambda k, v: None if ".h.1." in k else v, r"h.1.attn.c_attn.weight' is missing"),
        ("full", lambda k, v: None if "score" in k else v, "'score.weight' is missing"),
    ],
)
def test_a_result_without_some_of_its_tensors_is_refused(name, change, message, results, tmp_path):
    folder = shutil.copytree(results / name, tmp_path / name)
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    weights_with(folder, change, file)
    list_files_again(folder)
    with pytest.raises(RecipeError, match=message):
        load_result(folder)


def test_an_adapter_of_other_targets_or_a_cut_file_is_refused(results, tmp_path):
    folder = shutil.copytree(results / "lora", tmp_path / "lora")
    config_file = folder / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(config | {"target_modules": ["c_fc"]}))
    list_files_again(folder)
    with pytest.raises(RecipeError, match="target_modules is .*, but the recipe's is"):
        load_result(folder)
    config_file.write_text(json.dumps(config))
    list_files_again(folder)
    load_result(folder)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(RecipeError, match="adapter_model.safetensors has .* bytes, not"):
        load_result(folder)
    list_files_again(folder)
    with pytest.raises(RecipeError, match="adapter_model.safetensors: is damaged: .*incomplete"):
        load_result(folder)


def test_a_result_without_its_tokenizer_is_refused(results, tmp_path):
    folder = shutil.copytree(results / "full", tmp_path / "full")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match="tokenizer.json is missing"):
        load_result(folder)


# Tokenizers


def without_tokenizer(checkpoint, folder):
    return shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("tokenizer*"))


@pytest.mark.parametrize("name", ["causal_lm", "text_classification", "question_answering"])
def test_a_checkpoint_without_tokenizer_is_not_trained(name, checkpoint, helpdesk, tmp_path):
    base = without_tokenizer(checkpoint, tmp_path / "base")
    with pytest.raises(RecipeError, match="has no tokenizer: .*by --model.tokenizer"):
        run(recipe_for(make_tasks(helpdesk)[name], base, tmp_path / "run"))


def test_a_recipe_names_another_tokenizer(checkpoint, tokenizer, helpdesk, tmp_path):
    base = without_tokenizer(checkpoint, tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    task = make_tasks(helpdesk)["causal_lm"]
    options = {"tokenizer": str(tmp_path / "tokenizer")}
    found = run(recipe_for(task, base, tmp_path / "run", **options))
    expected = run(recipe_for(task, checkpoint, tmp_path / "own"))
    assert found["perplexity"] == expected["perplexity"]
    assert evaluate_result(tmp_path / "run").equal


def test_a_named_tokenizer_is_pinned_and_travels_in_recipe_json(checkpoint, tasks, monkeypatch):
    import pipelines.hub.pin

    asked = []

    def resolve_commit(hub, name, revision, **options):
        asked.append((name, revision))
        return f"commit of {name}"

    monkeypatch.setattr(pipelines.hub.pin, "resolve_commit", resolve_commit)
    model = Model(
        name_or_path=str(checkpoint), tokenizer="local/tokenizer", tokenizer_revision="v1"
    )
    recipe = pin_revisions(Recipe(name="a", task=tasks["causal_lm"], model=model))
    assert asked == [("local/tokenizer", "v1")]
    assert recipe.model == replace(model, tokenizer_revision="commit of local/tokenizer")
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(
        RecipeError, match="model.tokenizer_revision: is the revision of a tokenizer"
    ):
        replace(recipe, model=Model(name_or_path="a", tokenizer_revision="v1"))
    with pytest.raises(RecipeError, match="model.tokenizer.tokenizer"):
        replace(recipe, model=Scratch(tokenizer=model))


def half_of_bpe(folder):
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))


def no_eos(folder):
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({"backend": "tokenizers", "tokenizer_class": "TokenizersBackend"}))
    assert config["eos_token"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text(""), "cannot be loaded: JSONDecode"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded: KeyError"),
        (half_of_bpe, "cannot be loaded: ValueError: .*merges"),
        (no_eos, 'has no EOS token.*Set "eos_token"'),
    ],
)
def test_half_a_tokenizer_is_refused(change, message, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "base")
    change(folder)
    with pytest.raises(RecipeError, match=message):
        load_tokenizer(Model(name_or_path=str(folder)), [], max_length=64)


@pytest.mark.parametrize("kind", ["template", "sequence", "roberta", "llama"])
def test_a_result_adds_no_special_tokens_as_its_training_added_none(kind, checkpoint, tmp_path):
    from tokenizers import processors
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    folder = shutil.copytree(checkpoint, tmp_path / "base")
    own = AutoTokenizer.from_pretrained(checkpoint)
    backend, eos = own.backend_tokenizer, (own.eos_token, own.eos_token_id)
    first = processors.TemplateProcessing(f"{eos[0]} $A", f"{eos[0]} $A $B", [eos])
    if kind == "llama":
        model = json.loads(backend.to_str())["model"]
        merges = [tuple(each) for each in model["merges"]]
        tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), eos[0])
        other = LlamaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True, **tokens)
    else:
        backend.post_processor = {
            "template": first,
            "sequence": processors.Sequence([processors.ByteLevel(), first]),
            "roberta": processors.RobertaProcessing(eos, eos),
        }[kind]
        other = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos[0])
    other.save_pretrained(folder)
    assert eos[1] in AutoTokenizer.from_pretrained(folder)("A lamp")["input_ids"]

    loaded = load_tokenizer(Model(name_or_path=str(folder)), (), max_length=64)
    loaded.save_pretrained(tmp_path / "result")
    for each in (loaded, AutoTokenizer.from_pretrained(tmp_path / "result")):
        (ids,) = token_ids(each, ["A lamp"])
        assert each("A lamp")["input_ids"] == each.encode("A lamp") == ids
        assert eos[1] not in ids


def test_characters_that_a_tokenizer_loses_are_counted(tokenizer):
    letters = train_char_tokenizer(["abcdefghijklmnopqrstuvwxyz "])

    def cautions(own, text):
        rows = [{"messages": [{"role": "user", "content": text}]}]
        return list(check_tokenizer(own, LANGUAGE_MODEL, Examples(rows, "rows")))

    assert cautions(letters, "all of it is known") == []
    (caution,) = cautions(letters, "abc DE fgh")  # "user" is known too
    assert caution.startswith("the tokenizer loses 17% of the characters")
    with pytest.raises(RecipeError, match="loses 100% .*Use a model whose tokenizer has them"):
        list(check_tokenizer(letters, LANGUAGE_MODEL, Examples([{"text": "京都は日本"}], "rows")))
    for text in ("京都 é 😀 'n'", "one<|endoftext|>two", "  spaces\n\n"):
        assert cautions(tokenizer, text) == []


@pytest.fixture(scope="module")
def bytes_base(checkpoint, tmp_path_factory):
    """A checkpoint with a slow tokenizer, of bytes."""
    folder = without_tokenizer(checkpoint, tmp_path_factory.mktemp("slow") / "base")
    ByT5Tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["causal_lm", "text_classification", "instruction_tuning"])
def test_a_slow_tokenizer_trains_saves_and_loads(name, bytes_base, helpdesk, tmp_path):
    task = make_tasks(helpdesk)[name]
    run(recipe_for(task, bytes_base, tmp_path, "lora"))
    assert evaluate_result(tmp_path).equal


def test_answers_need_a_fast_tokenizer(bytes_base, helpdesk, tmp_path):
    task = make_tasks(helpdesk)["question_answering"]
    with pytest.raises(RecipeError, match="ByT5Tokenizer is a slow tokenizer.*QuestionAnswering"):
        run(recipe_for(task, bytes_base, tmp_path))


# Token ids and embeddings


def with_token(checkpoint, folder, **tokens):
    """Return a copy of a checkpoint whose tokenizer has a token more than the embeddings."""
    shutil.copytree(checkpoint, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(tokens)
    assert len(tokenizer) == 401
    tokenizer.save_pretrained(folder)
    return folder


def test_eos_pads_where_the_model_has_no_pad_token(checkpoint, helpdesk, tmp_path, capsys):
    base = with_token(checkpoint, tmp_path / "base", pad_token="[PAD]")
    task = make_tasks(helpdesk)["text_classification"]
    found = run(recipe_for(task, base, tmp_path / "run"))
    assert "'[PAD]' is token 400, beyond the model's 400 embeddings" in capsys.readouterr().out
    expected = run(recipe_for(task, checkpoint, tmp_path / "own"))
    assert found["loss"] == expected["loss"]
    loaded_again = load_result(tmp_path / "run")
    assert loaded_again.tokenizer.pad_token == loaded_again.tokenizer.eos_token
    with pytest.raises(DataError, match=r"'\[PAD\]' is token 400, beyond .* of 400"):
        loaded_again.model(**loaded_again.tokenizer("a [PAD] b", return_tensors="pt"))


def test_an_eos_token_beyond_the_embeddings_is_refused(checkpoint, tmp_path):
    base = with_token(checkpoint, tmp_path / "base", eos_token="</s>")
    tokenizer = load_tokenizer(Model(name_or_path=str(base)), [], max_length=64)
    with pytest.raises(RecipeError, match="EOS token '</s>' is token 400, beyond .* 400 embed"):
        load_base(
            LANGUAGE_MODEL,
            Model(name_or_path=str(base)),
            (),
            quantization=None,
            tokenizer=tokenizer,
        )


def test_only_columns_that_reach_the_model_are_checked(checkpoint, helpdesk, tmp_path):
    base = with_token(checkpoint, tmp_path / "base", pad_token="[PAD]")
    rows = [{"note": "[PAD]", "text": f"word {i}", "label": "ab"[i % 2]} for i in range(20)]
    file = tmp_path / "rows.jsonl"
    task = TextClassification(dataset=DatasetSource(path=str(file)), max_length=64)
    file.write_text("\n".join(map(json.dumps, rows)))
    run(recipe_for(task, base, tmp_path / "run"))
    rows[3]["text"] = "a [PAD] b"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"rows.jsonl:4: '\[PAD\]' is token 400"):
        run(recipe_for(task, base, tmp_path / "again"))


def test_each_kind_of_ids_is_checked(tokenizer):
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [7, 9]}]
    check_vocabulary(Features(rows, {}, num_rows=1), tokenizer, 10)
    with pytest.raises(DataError, match="row 0: .* is token 9, beyond the model's vocabulary of 9"):
        check_vocabulary(Features(rows, {}, num_rows=1), tokenizer, 9)
