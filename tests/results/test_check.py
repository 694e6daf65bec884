"""A damaged or hostile result is refused in words, before anything is built from it."""

import json
import resource
import shutil
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from random import Random

import psutil
import pytest
import torch

from helpers.factories import first_logits, list_files_again, make_tasks, method
from helpers.mutations import BOMBS, mutate, not_finite
from pipelines.errors import NonFiniteError, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch, Tokenizer, Train

KINDS = ("classifier", "language_model", "replies")


@pytest.fixture(scope="module")
def originals(tmp_path_factory, checkpoint, helpdesk):
    """A classifier's adapter, a language model from scratch, and an adapter that replies."""
    from pipelines.flow import run

    folder, tasks = tmp_path_factory.mktemp("originals"), make_tasks(helpdesk)
    base = {"model": Model(name_or_path=str(checkpoint)), **method("lora")}
    scratch = Scratch(
        n_layer=2, n_head=2, n_embd=32, n_positions=64, tokenizer=Tokenizer(vocab_size=300)
    )
    parts = (
        {"task": tasks["text_classification"], **base},
        {"task": tasks["causal_lm"], "model": scratch},
        {"task": tasks["instruction_tuning"], **base},
    )
    for name, part in zip(KINDS, parts, strict=True):
        train = Train(max_steps=2, learning_rate=1e-2)
        run(Recipe(name=name, train=train, output_dir=str(folder / name), **part))
        (folder / name / "run.log").unlink()
    return folder


@pytest.fixture
def copy(originals, tmp_path):
    """Return the function that copies an original."""
    return lambda name: shutil.copytree(originals / name, tmp_path / name)


def use(folder: Path):
    """Load a result; return its logits on its evaluation rows, its labels and its hash."""
    from pipelines.data.load import load_splits
    from pipelines.hub.load import load_result

    loaded = load_result(folder)
    task = loaded.recipe.task
    rows = load_splits(task.dataset).held_out
    given = task.features(rows, loaded.tokenizer, loaded.labels, training=False).dataset
    logits = first_logits(task, loaded.model, loaded.tokenizer, given[:8])
    return logits, loaded.labels, loaded.sha256


@contextmanager
def bounded(seconds: int, memory: int):
    """Raise TimeoutError after `seconds`, and MemoryError beyond `memory` more bytes than now."""

    def stop(*arguments):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + memory, limits[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def outcome(folder: Path, original) -> str:
    """Return what using a damaged result leads to."""
    from pipelines.errors import DataError
    from pipelines.evaluation.evaluate import evaluate as evaluate_result

    try:
        with bounded(30, 1 << 30):
            logits, labels, sha256 = use(folder)
    except NonFiniteError:
        return "refused, 4"
    except RecipeError as error:
        return "refused, 2" if 0 < len(str(error)) < 5000 else "BAD MESSAGE"
    except DataError:
        return "refused, 3"
    same_form = labels == original[1] and logits.shape == original[0].shape
    if same_form and torch.allclose(logits, original[0], rtol=1e-5, atol=1e-5):
        return "equal"
    if sha256 != original[2]:
        return "other hash"
    try:
        return "score not equal" if not evaluate_result(folder).equal else "WRONG"
    except (RecipeError, NonFiniteError, DataError):
        return "refused by evaluate"


@pytest.mark.parametrize("number", [60, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_damage_is_refused_harmless_or_reported(originals, tmp_path, number):
    canary, counts, seconds = tmp_path / "canary", Counter(), []
    used = {name: use(originals / name) for name in KINDS}
    for seed in range(number):
        random = Random(seed)
        name = KINDS[seed % 3]
        folder = shutil.copytree(originals / name, tmp_path / "copy")
        file, how = mutate(folder, originals / KINDS[(seed + 1) % 3], random, canary)
        if seed % 4:  # the hashes of the others reveal the damage already
            list_files_again(folder)
        began = time.perf_counter()
        try:
            found = outcome(folder, used[name])
        except BaseException as error:
            error.add_note(f"seed {seed}: {name}, {file}: {how}")
            raise
        seconds.append(time.perf_counter() - began)
        counts[found] += 1
        # a tokenizer whose hash was replaced too may give other tokens and the same score
        unknowable = seed % 4 and file.startswith("tokenizer")
        assert found != "WRONG" or unknowable, (seed, name, file, how)
        assert found != "BAD MESSAGE", (seed, name, file, how)
        assert not canary.exists()
        shutil.rmtree(folder)
    print(number, dict(counts), f"longest {max(seconds):.1f} s")
    assert counts["equal"] < number / 2


def refusal(folder: Path) -> str:
    """Return the message of a refusal, in bounded time and memory."""
    list_files_again(folder)
    with bounded(30, 1 << 30), pytest.raises(RecipeError) as error:
        use(folder)
    return str(error.value)


def edit(folder: Path, file: str, **values) -> None:
    """Set fields of a JSON file; a key with dots is a path."""
    value = json.loads((folder / file).read_text())
    for key, new in values.items():
        *parents, last = key.split(".")
        inside = value
        for parent in parents:
            inside = inside[parent]
        inside[last] = new
    (folder / file).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', but the recipe's is"),
        ({"target_modules": ["c_attn"]}, "target_modules is ['c_attn'], but"),
        ({"target_modules": "c_attn"}, "target_modules is 'c_attn', but"),
        ({"r": 8}, "r is 8, but the recipe's is 4"),
        ({"lora_alpha": 1}, "lora_alpha is 1, but the recipe's is 32"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"task_type": "CAUSAL_LM"}, "task_type is 'CAUSAL_LM', but the recipe's is"),
        ({"modules_to_save": None}, "modules_to_save is None"),
        ({"modules_to_save": ["score", "transformer"]}, "modules_to_save is"),
        ({"revision": "main"}, "revision is 'main', but the recipe's is None"),
        ({"base_model_name_or_path": "evil/base"}, "base_model_name_or_path is 'evil/base', but"),
        ({"auto_mapping": {"parent_library": "os", "base_model_class": "x"}}, "auto_mapping is"),
        ({"megatron_config": {}, "megatron_core": "os"}, "megatron_core is 'os', but"),
        ({"rank_pattern": {"c_attn": 10**6}}, "rank_pattern is"),
        ({"layer_replication": [[0, 10**6]]}, "layer_replication is"),
        ({"new_field": "x"}, "new_field is 'x', but the recipe's is None"),
    ],
)
def test_an_adapter_config_is_what_the_recipe_makes(copy, values, message):
    folder = copy("classifier")
    edit(folder, "adapter_config.json", **values)
    said = refusal(folder)
    assert said.startswith("adapter_config.json: ")
    assert message in said


def test_fields_of_another_peft_that_are_empty_are_harmless(copy):
    folder = copy("classifier")
    edit(folder, "adapter_config.json", new_field=None, other={}, peft_version="9.0")
    list_files_again(folder)
    use(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": "abcdefgh"}, "labels: 'abcdefgh' is not allowed"),
        ({"labels": ["a"] * 8}, "labels: 'a' is duplicated"),
        ({"labels": [str(i) for i in range(7)] + [8]}, "labels: "),
        ({"labels": []}, "labels are missing"),
        ({"labels": ["a", "b"]}, "base_model.model.score.weight (8, 32), not (2, 32)"),
        ({"task": "CausalLM"}, "task is 'CausalLM', but the recipe's is 'TextClassification'"),
        ({"base": None}, "base is missing"),
        ({"base.revision": "main"}, "base.revision is 'main', but the recipe's is None"),
        ({"base.name_or_path": "a/b"}, "base.name_or_path is 'a/b', but the recipe's is"),
        ({"base.num_hidden_layers": 1}, "the adapter was trained on num_hidden_layers 1"),
        ({"base.vocab_size": 10**9}, "the adapter was trained on vocab_size 1000000000"),
        ({"base": []}, "base: [] is not an object"),
        ({"metrics.primary": "x"}, "its primary metric 'x' is not a number"),
        ({"metrics.accuracy": float("inf")}, "its accuracy is inf"),
        ({"dataset": {}}, "dataset.eval_rows_sha256: is missing"),
        ({"versions": {"torch": 2}}, "versions: {'torch': 2} is not allowed"),
        ({"pad_token_id": 5}, "pad_token_id is 0, but task.json has 5"),
        ({"max_length": "x" * 10**6}, "max_length: 'xxx"),
    ],
)
def test_a_sidecar_fits_its_recipe(copy, values, message):
    folder = copy("classifier")
    edit(folder, "task.json", **values)
    said = refusal(folder)
    assert message in said
    assert len(said) < 2000


def test_a_revision_that_the_recipe_pins_is_the_one_everywhere(copy):
    folder = copy("classifier")
    edit(folder, "recipe.json", **{"model.revision": "a" * 40})
    assert "base.revision is None, but the recipe's is 'aaa" in refusal(folder)
    edit(folder, "task.json", **{"base.revision": "a" * 40})
    assert "revision is None, but the recipe's is 'aaa" in refusal(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layer": 10**6}, "n_layer is 1000000, but the weights have 28 tensors"),
        ({"n_layer": 1}, "n_layer is 1, but the recipe's is 2"),
        ({"n_head": 4}, "n_head is 4, but the recipe's is 2"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000, but the weights have"),
        ({"vocab_size": 1}, "model.vocab: has id 299"),
        ({"n_inner": 10**9}, "n_inner is 1000000000, but the weights have"),
        ({"n_inner": 64}, "c_fc.weight' has shape (32, 128), but the model's is (32, 64)"),
        ({"model_type": "evil"}, "transformers knows no model_type 'evil'"),
        ({"model_type": ["gpt2"]}, "transformers knows no model_type ['gpt2']"),
        ({"_attn_implementation": "evil/kernel"}, "_attn_implementation is not allowed"),
        ({"attn_implementation": "evil/kernel"}, "attn_implementation is not allowed"),
        ({"sub": {"auto_map": {"AutoConfig": "a.B"}}}, "auto_map is not allowed"),
        ({"quantization_config": {"quant_method": "awq"}}, "is not bitsandbytes'"),
        ({"transformers_weights": "../x.safetensors"}, "transformers_weights is not allowed"),
        ({"layer_norm_epsilon": "x"}, "cannot be built: "),
        ({"activation_function": "zzz"}, "cannot be built: KeyError"),
        ({"tie_word_embeddings": False}, "'lm_head.weight' is missing"),
    ],
)
def test_a_config_is_of_the_weights_and_fetches_nothing(copy, values, message):
    folder = copy("language_model")
    edit(folder, "config.json", **values)
    assert message.replace("model.vocab: ", "") in refusal(folder)


def test_a_recipe_of_another_task_is_refused(copy, originals):
    folder = copy("classifier")
    shutil.copy(originals / "replies" / "recipe.json", folder)
    assert "task is 'TextClassification', but the recipe's is 'Instruction" in refusal(folder)


def test_a_rank_that_the_weights_lack_is_refused_before_it_is_built(copy):
    folder = copy("classifier")
    edit(folder, "recipe.json", **{"lora.r": 10**6})
    edit(folder, "adapter_config.json", r=10**6)
    assert "has shape (4, 32), but the recipe's rank is 1000000" in refusal(folder)


def test_half_of_an_adapter_is_refused(copy):
    from safetensors.torch import load_file, save_file

    folder = copy("classifier")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    half = {name: value for name, value in tensors.items() if ".h.1." not in name}
    save_file(half, file)
    assert "lacks 8 tensors of adapter_config.json" in refusal(folder)
    more = {name.replace(".h.1.", ".h.2."): value.clone() for name, value in tensors.items()}
    save_file(tensors | more, file)
    assert "has 8 tensors that adapter_config.json does not describe" in refusal(folder)


@pytest.mark.parametrize("name", KINDS)
def test_weights_that_are_not_finite_are_named(copy, name):
    folder = copy(name)
    (file,) = folder.glob("*.safetensors")
    not_finite(file, Random(1))
    list_files_again(folder)
    with pytest.raises(NonFiniteError, match="holds values that are not finite") as error:
        use(folder)
    assert error.value.exit_code == 4
    assert str(error.value).startswith(file.name)


def test_weights_of_two_kinds_are_refused(copy, originals):
    folder = copy("classifier")
    shutil.copy(originals / "language_model" / "config.json", folder)
    assert "config.json: is of a whole model" in refusal(folder)
    folder = copy("language_model")
    shutil.copy(originals / "classifier" / "adapter_model.safetensors", folder)
    assert "adapter_model.safetensors: is of an adapter" in refusal(folder)


def test_shards_are_files_of_the_result(copy):
    from transformers import AutoModelForCausalLM

    folder = copy("language_model")
    logits, _, _ = use(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    list_files_again(folder)
    torch.testing.assert_close(use(folder)[0], logits)
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace(shards[0].name, f"../{shards[0].name}"))
    assert "which is not a shard" in refusal(folder)
    index.write_text(text)
    shards[0].unlink()
    assert f"{shards[0].name} is missing" in refusal(folder)


@pytest.mark.parametrize("template", BOMBS)
def test_a_chat_template_must_end(copy, template):
    folder = copy("replies")
    (folder / "chat_template.jinja").write_text(template)
    assert "its chat template cannot be used" in refusal(folder)


def test_a_chat_template_of_others_that_ends_is_accepted():
    from pipelines.results.check_tokenizer import template_error

    chatml = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{% generation %}{{ m | tojson(indent=4) }}{% endgeneration %}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ strftime_now('%d') }}"
    )
    assert template_error(chatml) is None
    assert template_error(strict) is None


def test_a_tokenizer_of_another_model_is_refused(copy):
    folder = copy("classifier")
    (folder / "tokenizer.json").rename(folder / "kept.txt")
    assert "tokenizer.json: is missing" in refusal(folder)
    (folder / "kept.txt").rename(folder / "tokenizer.json")
    text = (folder / "tokenizer_config.json").read_text()
    edit(folder, "tokenizer_config.json", eos_token="<new>")
    assert "eos_token '<new>' is not one of the model's 400" in refusal(folder)
    (folder / "tokenizer_config.json").write_text(text)
    edit(folder, "tokenizer.json", **{"model.vocab.a": 400})
    assert "has id 400, but the model has 400 tokens" in refusal(folder)


def test_the_command_line_names_the_file(copy, capsys):
    from pipelines.hub.load import load_result
    from pipelines.terminal import report_errors

    folder = copy("classifier")
    (folder / "task.json").write_text("{")
    with pytest.raises(SystemExit) as stopped, report_errors():
        load_result(folder)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"{folder}: task.json is damaged")
