"""Texts are continued alone as in a batch, within the model's positions, and drawn by a seed."""

import json
import re
from dataclasses import fields
from logging import ERROR, getLogger

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GenerationConfig

from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError, RecipeError
from pipelines.models.generation import batches, continue_prompts
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.generation import Continuation, Generation

TASK = CausalLM(dataset=DatasetSource(path="nowhere"))
TEXTS = [
    "My order is late.",
    "Hello",
    "The hinge of the cupboard is broken. " * 3,
    "Invoice 4711 names the wrong sum, and nobody answers.",
    "My order",
    "Hello",
]
GREEDY = Generation(max_new_tokens=12)


@pytest.fixture
def model(checkpoint):
    """A language model of random weights, which seldom ends a text."""
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture
def prompts(tokenizer):
    return TASK.prompts(Examples([{"text": text} for text in TEXTS], "texts"), tokenizer)


def let_it_end(model, eos, above):
    """Make EOS likely: its logit is `above` and the others' keep their order.

    Its embedding, which is its row of the tied head too, becomes a multiple of the bias of the last
    LayerNorm, which is orthogonal to what is left of the other rows.
    """
    with torch.no_grad():
        model.transformer.ln_f.bias.zero_()
        model.transformer.ln_f.bias[0] = above
        model.transformer.ln_f.weight[0] = 0
        model.transformer.wte.weight[:, 0] = 0
        model.transformer.wte.weight[eos] = 0
        model.transformer.wte.weight[eos, 0] = 1


def by_hand(model, prompt, count, eos):
    """Return the likeliest tokens, each from a forward pass over the whole text."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


def test_a_prompt_begins_as_documents_do_in_training(tokenizer):
    (prompt,) = TASK.prompts(Examples([{"text": "My order"}], "texts"), tokenizer)
    rows = TASK.features(
        Examples([{"text": "My order"}], "texts"), tokenizer, (), training=False
    ).dataset
    assert prompt == list(rows[0]["input_ids"])[:-1]  # the block ends in EOS


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": " \n"}, "a.jsonl:7: the text is empty"),
        ({"body": "a"}, "a.jsonl:7: column 'text'"),
    ],
)
def test_a_row_without_a_text_names_file_and_line(tokenizer, row, said):
    with pytest.raises(DataError, match=said):
        TASK.prompts(Examples([row], "a.jsonl", [7]), tokenizer)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_greedy_texts_are_the_likeliest_tokens_one_by_one(model, tokenizer, prompts, batch_size):
    eos = tokenizer.eos_token_id
    let_it_end(model, eos, 2.8)
    expected = []
    for prompt in prompts:
        ids = by_hand(model, prompt, 12, eos)
        ended = ids[-1] == eos
        expected.append(Continuation(tokenizer.decode(ids[:-1] if ended else ids), ended))
    assert {each.ended for each in expected} == {True, False}
    assert continue_prompts(model, tokenizer, prompts, GREEDY, batch_size=batch_size) == expected


@pytest.mark.parametrize(
    "options",
    [
        Generation(max_new_tokens=12, num_beams=3, length_penalty=0.5),
        Generation(max_new_tokens=12, num_beams=3, length_penalty=-1.0),
        Generation(max_new_tokens=12, repetition_penalty=1.5),
        Generation(max_new_tokens=12, no_repeat_ngram_size=1),
        Generation(max_new_tokens=12, do_sample=True, temperature=1.5, top_k=0, top_p=0.9),
        Generation(max_new_tokens=200),
        Generation(max_new_tokens=200, num_beams=2),
    ],
    ids=repr,
)
def test_a_text_in_a_batch_gives_what_it_gives_alone(model, tokenizer, prompts, options):
    let_it_end(model, tokenizer.eos_token_id, 2.6)
    prompts = [prompt[1:] for prompt in prompts]  # the padding is then the only EOS
    together = continue_prompts(model, tokenizer, prompts, options, seed=3)
    alone = [continue_prompts(model, tokenizer, [p], options, seed=3)[0] for p in prompts]
    assert together == alone
    assert len({each.text for each in together}) > 3
    assert any(each.ended for each in together)


def test_sixteen_prompts_of_sixteen_lengths_give_in_one_batch_what_each_gives_alone(
    model, tokenizer
):
    generator = torch.Generator().manual_seed(0)
    lengths = [1 + 7 * n for n in range(16)]
    prompts = [torch.randint(1, 400, (n,), generator=generator).tolist() for n in lengths]
    options = Generation(max_new_tokens=24)
    together = continue_prompts(model, tokenizer, prompts, options, batch_size=16)
    for prompt, found in zip(prompts, together, strict=True):
        assert [found] == continue_prompts(model, tokenizer, [prompt], options)
        ids = by_hand(model, prompt, 24, tokenizer.eos_token_id)
        assert found.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert len({found.text for found in together}) > 8


def test_a_text_fills_the_positions_and_cuts_no_other(model, tokenizer, prompts):
    long = prompts[2] * 12
    long = [long[:250], long[:253], long[:253]]
    options = Generation(max_new_tokens=20)
    found = continue_prompts(model, tokenizer, [*long, *prompts], options)
    for prompt, each in zip([*long, *prompts], found, strict=True):
        room = min(20, 256 - len(prompt))
        ids = by_hand(model, prompt, room, tokenizer.eos_token_id)
        assert each == Continuation(tokenizer.decode(ids), False)
        assert len(ids) == room


def test_prompts_of_like_lengths_share_a_batch():
    lengths = [250, 4, 253, 9, 253, 7, 8, 6, 7]
    prompts = [[1] * length for length in lengths]
    options = Generation(max_new_tokens=20)
    assert list(batches(prompts, options, 256, 4)) == [
        ([2, 4], 3),
        ([0], 6),
        ([3, 6, 5, 8], 20),
        ([7, 1], 20),
    ]
    options = Generation(max_new_tokens=3, no_repeat_ngram_size=2)
    assert list(batches(prompts, options, 256, 4)) == [
        ([2, 4], 3),
        ([0], 3),
        *(([row], 3) for row in (3, 6)),
        ([5, 8], 3),
        *(([row], 3) for row in (7, 1)),
    ]


def test_a_prompt_that_leaves_no_room_is_told(model, tokenizer):
    with pytest.raises(DataError, match=r"prompt 1: 256 tokens leave no room .* 256 positions"):
        continue_prompts(model, tokenizer, [[1], [1] * 256], GREEDY)
    assert len(continue_prompts(model, tokenizer, [[1] * 255], GREEDY)) == 1


def test_as_many_beams_as_tokens_find_the_likeliest_pair(model, tokenizer, prompts):
    beams = Generation(max_new_tokens=2, num_beams=400, length_penalty=0.0)
    greedy = Generation(max_new_tokens=2)
    better = 0
    for prompt in prompts:
        with torch.no_grad():
            first = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            rows = torch.tensor([[*prompt, token] for token in range(400)])
            pairs = first[:, None] + model(rows).logits[:, -1].log_softmax(-1)
        pairs[0] = float("-inf")  # nothing stands after EOS
        ids = [0] if first[0] > pairs.max() else divmod(int(pairs.argmax()), 400)
        likeliest = tokenizer.decode([token for token in ids if token])
        (found,) = continue_prompts(model, tokenizer, [prompt], beams)
        assert found.text == likeliest
        better += continue_prompts(model, tokenizer, [prompt], greedy)[0].text != likeliest
    assert better


def test_tokens_are_drawn_by_their_probability(model, tokenizer):
    options = Generation(max_new_tokens=1, do_sample=True, temperature=2.0, top_k=4)
    prompt = [0, 5, 6]
    with torch.no_grad():
        values, ids = model(torch.tensor([prompt])).logits[0, -1].topk(4)
    shares = (values / 2.0).softmax(0)
    drawn = continue_prompts(model, tokenizer, [prompt] * 2000, options, batch_size=2000)
    texts = [each.text for each in drawn]
    for token, share in zip(ids.tolist(), shares.tolist(), strict=True):
        found = texts.count(tokenizer.decode([token])) / 2000
        assert found == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5)
    assert sum(texts.count(tokenizer.decode([token])) for token in ids.tolist()) == 2000


def test_a_frozen_head_is_not_copied_for_each_row(model, tokenizer, prompts):
    class Products(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            products = (torch.ops.aten.bmm.default, torch.ops.aten.mm.default)
            if function in products and args[1].shape[-1] == model.config.vocab_size:
                self.largest = max(self.largest, args[1].numel())
            return function(*args, **(kwargs or {}))

    model.requires_grad_(False)
    with Products() as products:
        continue_prompts(model, tokenizer, prompts, GREEDY)
    assert products.largest == model.lm_head.weight.numel()
    assert not model.lm_head._forward_pre_hooks


def test_a_seed_draws_again_what_it_drew(model, tokenizer, prompts):
    options = Generation(max_new_tokens=12, do_sample=True)
    one = continue_prompts(model, tokenizer, prompts, options, seed=1)
    torch.manual_seed(5)
    assert continue_prompts(model, tokenizer, prompts[::-1], options, seed=1) == one[::-1]
    assert one[1] == one[5]  # equal prompts
    assert continue_prompts(model, tokenizer, prompts, options, seed=2) != one
    free = continue_prompts(model, tokenizer, prompts, options)
    assert free[1] != free[5]


def test_drawing_in_a_beam_search_is_refused(model, tokenizer):
    with pytest.raises(RecipeError, match="do_sample: a beam search draws nothing"):
        continue_prompts(model, tokenizer, [[1]], Generation(do_sample=True, num_beams=2))


def test_a_model_in_training_is_left_as_it_was(model, tokenizer, prompts):
    expected = continue_prompts(model, tokenizer, prompts, GREEDY)
    own = GenerationConfig(max_length=3, repetition_penalty=9.0, min_new_tokens=2, do_sample=True)
    model.generation_config = own
    model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    assert continue_prompts(model, tokenizer, prompts, GREEDY) == expected
    assert all(module.training for module in model.modules())
    assert model.generation_config is own
    assert model.config.use_cache is False


@pytest.mark.parametrize("kind", ["fp32", "8bit", "4bit"])
def test_an_adapter_on_every_base_writes_what_it_says_is_likeliest(
    kind, checkpoint, tokenizer, prompts, tasks, recwarn, caplog
):
    from pipelines.models.build import build_model
    from pipelines.recipe.recipe import Recipe
    from pipelines.recipe.values import NF4, Int8, Lora, Model

    recipe = Recipe(
        name="a",
        task=tasks["causal_lm"],
        model=Model(name_or_path=str(checkpoint)),
        quantization={"fp32": None, "8bit": Int8(), "4bit": NF4()}[kind],
        lora=Lora(r=4),
    )
    torch.manual_seed(0)
    model = build_model(recipe, tokenizer, ())
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    getLogger("bitsandbytes").setLevel(ERROR)  # as the command line does
    recwarn.clear()
    found = continue_prompts(model, tokenizer, prompts[:3], GREEDY)
    assert not [str(warning.message) for warning in recwarn]
    assert not caplog.records
    with model.disable_adapter():
        assert continue_prompts(model, tokenizer, prompts[:3], GREEDY) != found
    model.eval()
    for prompt, each in zip(prompts[:3], found, strict=True):
        ids = by_hand(model, prompt, 12, tokenizer.eos_token_id)
        assert each.text == tokenizer.decode(ids, skip_special_tokens=True)


# The command


@pytest.fixture(scope="module")
def results(tmp_path_factory, checkpoint, helpdesk):
    """An adapter that writes, and one that classifies."""
    from helpers.factories import make_tasks
    from pipelines.flow import run
    from pipelines.recipe.recipe import Recipe
    from pipelines.recipe.values import Int8, Lora, Model, Train

    folder = tmp_path_factory.mktemp("results")
    for name in ("causal_lm", "text_classification"):
        recipe = Recipe(
            name=name,
            task=make_tasks(helpdesk)[name],
            model=Model(name_or_path=str(checkpoint)),
            quantization=Int8(),
            lora=Lora(r=4),
            train=Train(max_steps=4, learning_rate=1e-2, warmup_steps=0),
            output_dir=str(folder / name),
        )
        run(recipe)
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `gpt2-recipes`; return what it printed."""

    def run(*arguments, code=0):
        from pipelines.cli import console

        monkeypatch.setattr("sys.argv", ["gpt2-recipes", *map(str, arguments)])
        capsys.readouterr()
        found = 0
        try:
            console()
        except SystemExit as stop:
            found = stop.code
        assert found == code, capsys.readouterr()
        said = capsys.readouterr()
        return said.err if code else said.out

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16", "8bit", "4bit"])
@pytest.mark.parametrize("options", [(), ("--do-sample", "--seed", "1"), ("--num-beams", "2")])
def test_the_command_prints_what_the_model_writes(results, command, precision, options):
    from pipelines.hub.load import load_result

    folder = results / "causal_lm"
    flags = ("--max-new-tokens", "8", "--precision", precision)
    said = command("generate", folder, "My order is late.", *flags, *options)
    loaded = load_result(folder, precision=precision)
    prompt = loaded.recipe.task.prompts(
        Examples([{"text": "My order is late."}], ""), loaded.tokenizer
    )
    wanted = Generation(
        max_new_tokens=8,
        do_sample="--do-sample" in options,
        num_beams=2 if "--num-beams" in options else 1,
    )
    (expected,) = continue_prompts(loaded.model, loaded.tokenizer, prompt, wanted, seed=1)
    assert said == expected.text + "\n"


def test_rows_of_a_file_give_what_they_give_alone(results, command, tmp_path):
    rows = [{"id": f"n{i}", "text": text} for i, text in enumerate(TEXTS * 4)]
    del rows[3]["id"]
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:20] + [{"text": ""}]))
    folder = results / "causal_lm"
    flags = ("--max-new-tokens", "6", "--do-sample", "--top-p", "0.9", "--seed", "4")
    flags += ("--precision", "fp32", "--batch-size", "3")
    arguments = ("generate", folder, "--file", file, "--out", out, *flags)
    assert "in.jsonl:21: the text is empty" in command(*arguments, code=3)
    assert len(out.read_text().splitlines()) == 20
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command(*arguments)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("id") for line in found] == [row.get("id") for row in rows]
    assert "id" not in found[3]
    for text, line in zip(TEXTS[:3], found, strict=False):
        assert command("generate", folder, text, *flags) == line["text"] + "\n"
        assert line["ended"] is False
    said = command(*arguments, "--temperature", "0.5", code=2)
    assert "--out: " in said
    assert "was begun with temperature 1.0, not 0.5" in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("causal_lm", "Hello", "--max-new-tokes", "4"), 2, "--max-new-tokens"),
        (("causal_lm", "Hello", "--temperature", "0"), 2, "--temperature: 0.0 is out of range"),
        (("causal_lm", "Hello", "--temperature", "0.5"), 2, "--temperature: 0.5 .* --do-sample"),
        (("causal_lm", "Hello", "--length-penalty", "2"), 2, "penalty: 2.0 .* --num-beams 4"),
        (("causal_lm", "Hello", "--num-beams", "2", "--do-sample"), 2, "--do-sample: a beam"),
        (
            ("causal_lm", "Hello", "--do-sample", "--no-do-sample"),
            2,
            "--do-sample: contradicts --no-do",
        ),
        (("causal_lm", "Hello", "--out", "x"), 2, "--out: goes with --file"),
        (("causal_lm", "Hello", "--batch-size", "0"), 2, "--batch-size: 0 is out of range"),
        (("causal_lm",), 2, "takes a TEXT or a --file"),
        (("causal_lm", " "), 2, "^TEXT: is empty"),
        (("causal_lm", "late " * 300), 3, "^TEXT: .* tokens leave no room"),
        (("text_classification", "Hello"), 3, "TextClassification generates no text. Use"),
    ],
)
def test_what_cannot_be_is_one_message(results, command, arguments, code, said):
    printed = command("generate", results / arguments[0], *arguments[1:], code=code)
    assert re.search(said, printed)
    assert "Traceback" not in printed
    assert len(printed.splitlines()) == 1 or "Unrecognized" in printed


def test_every_option_of_generation_is_a_flag(command):
    shown = " ".join(re.sub("[│─╭╮╰╯]", " ", command("generate", "--help")).split())
    for field in fields(Generation):
        assert f"--{field.name.replace('_', '-')} " in shown
    assert "--no-do-sample Turn --do-sample off." in shown
    assert "Beams of beam search; 1 is greedy search." in shown
    assert shown.count("(default: the recipe's)") == len(fields(Generation)) + 1


def test_a_task_may_have_options_of_its_own():
    from pipelines.recipe.generation import merge_options

    class Terse(CausalLM):
        @property
        def default_generation(self):
            return Generation(max_new_tokens=3, do_sample=True)

    found = merge_options(Terse(dataset=DatasetSource(path="nowhere")), {"do_sample": False})
    assert found == Generation(max_new_tokens=3, do_sample=False)


def test_options_that_a_search_does_not_read_are_refused_unless_they_are_the_recipes():
    from pipelines.recipe.generation import merge_options

    task = CausalLM(dataset=DatasetSource(path="nowhere"))
    for options in ({"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.9, "num_beams": 4}):
        (name, value), *_ = options.items()
        with pytest.raises(RecipeError, match=f"{name}: {value} would change nothing"):
            merge_options(task, options)
        merge_options(task, {**options, "do_sample": True})
    with pytest.raises(RecipeError, match="length_penalty: 2 .* without a beam search"):
        merge_options(task, {"length_penalty": 2})
    merge_options(task, {"length_penalty": 2, "num_beams": 2})
    merge_options(task, {"temperature": 1.0, "top_k": 50, "length_penalty": 1.0})
