"""Instruction and preference tuning: what is learned, what is not, and against what."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.factories import make_tasks, method
from pipelines.data.load import load_splits
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError, RecipeError
from pipelines.inference.generate import ReplyStreamer
from pipelines.models.build import build_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Train
from pipelines.tasks.generation import Generation, trim_reply
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.preference import PreferenceTuning
from pipelines.tasks.replies import CHAT_TEMPLATE, encode_exchanges
from pipelines.training.build import build_trainer

ANYWHERE = DatasetSource(path="nowhere")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " My order is late. "},
    {"role": "assistant", "content": "We are sorry."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "Today, 5 o'clock."},
]


@pytest.fixture
def chat_tokenizer(tokenizer):
    """The tokenizer with the chat template of a run."""
    tokenizer.chat_template = CHAT_TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


def encode_exchange(tokenizer, prompt, reply):
    """Return the tokens of one prompt with its reply."""
    [exchange] = encode_exchanges(tokenizer, [(prompt, reply)])
    return exchange


def trainer_for(task, checkpoint, tokenizer, folder, name="lora", training=None, **train):
    """Return a trainer of a few rows."""
    recipe = Recipe(
        name="tiny",
        task=task,
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=2, warmup_steps=0, learning_rate=1e-2, logging_steps=1, **train),
        output_dir=str(folder),
        **method(name),
    )
    splits = load_splits(task.dataset)
    features = [
        task.features(rows, tokenizer, (), training=which)
        for which, rows in ((True, training or splits.train), (False, splits.held_out))
    ]
    model = build_model(recipe, tokenizer, ())
    return build_trainer(
        recipe, model, tokenizer, train=features[0], scored={"eval": features[1]}, labels=()
    )


def loss_of(trainer, rows) -> tuple[float, torch.Tensor]:
    """Return the training loss of one batch, and its gradient by the token embeddings' output."""
    batch = trainer._prepare_inputs(trainer.data_collator([dict(row) for row in rows]))
    count = (batch["labels"] != -100).sum()
    trainer.model.eval()  # no dropout
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
    loss.backward()
    norms = [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
    return loss.item(), torch.stack(norms)


@pytest.mark.parametrize(
    ("prompt", "reply", "joined"),
    [
        (
            "Ticket: late\nReply:",
            "We do.",
            "Ticket: late\nReply: We do.<|endoftext|>",
        ),
        ("Ticket: late\nReply: ", " Sorry.\n", "Ticket: late\nReply: Sorry.<|endoftext|>"),
        ("late\n# Response:\n", "Sorry.", "late\n# Response:\nSorry.<|endoftext|>"),
        ("late\n# Response:\n", "\n Sorry. ", "late\n# Response:\nSorry.<|endoftext|>"),
        ("late, \nReply:", "   Sorry.", "late, \nReply: Sorry.<|endoftext|>"),
        # code keeps its indentation
        (
            "def late():\n",
            "    x = 1\n    y = 2\n",
            "def late():\n    x = 1\n    y = 2<|endoftext|>",
        ),
        ("def late():\n", "\n\treturn 1", "def late():\n\treturn 1<|endoftext|>"),
        ("def late():", "\n    return 1", "def late():\n    return 1<|endoftext|>"),
        ("def late():\n    ", "return 1", "def late():\n    return 1<|endoftext|>"),
    ],
)
def test_a_reply_is_joined_by_one_space_or_a_new_line_and_ends(tokenizer, prompt, reply, joined):
    task = InstructionTuning(dataset=ANYWHERE, prompt_format=prompt.replace("late", "{x}"))
    rows = Examples([{"x": "late", "completion": reply}], "rows")
    [row] = task.features(rows, tokenizer, (), training=True).dataset
    assert tokenizer.decode(row["input_ids"]) == joined
    learned = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learned).strip() == reply.strip() + "<|endoftext|>"
    assert row["labels"][-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    # generation reads the same tokens as training did
    [asked] = task.prompts(rows, tokenizer)
    assert [*asked, *learned] == row["input_ids"].tolist()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (" Sorry.\n", "Sorry."),
        ("\n\n Sorry.", "Sorry."),
        ("    return 1\n", "    return 1"),
        (" \n\n\treturn 1\n  ", "\n\treturn 1"),
        (" \n ", ""),
        ("", ""),
    ],
)
def test_what_a_model_wrote_is_shown_without_white_space_but_for_an_indentation(written, shown):
    assert trim_reply(written) == shown
    pieces: list[str] = []
    task = InstructionTuning(dataset=ANYWHERE)
    streamer = ReplyStreamer(task, tokenizer=None, write=pieces.append)
    for character in written:
        streamer.on_finalized_text(character)
    assert "".join(pieces).rstrip() == shown


@pytest.mark.parametrize(
    "task",
    [
        InstructionTuning(
            dataset=ANYWHERE, prompt_format="Q: {prompt}\nA:", completion_column="chosen"
        ),
        PreferenceTuning(dataset=ANYWHERE),
    ],
)
def test_replies_that_repeat_their_prompts_are_cautioned(task):
    """As in data whose replies are whole texts: the prompt would be read twice."""
    rows = [{"prompt": "Where? ", "chosen": " Where? Here.", "rejected": "Where? No."}] * 3
    rows += [{"prompt": "Who?", "chosen": "I.", "rejected": "You."}] * 2
    [text] = task.label_cautions(Examples(rows, "rows"))
    assert text.startswith("3 of 5 replies in column 'chosen' begin with the text of column 'pro")
    assert not list(task.label_cautions(Examples(rows[1:], "rows")))


def test_every_reply_of_a_chat_is_learned_and_nothing_else(chat_tokenizer):
    exchange = encode_exchange(chat_tokenizer, CHAT[:-1], CHAT[-1]["content"])
    text = chat_tokenizer.decode(exchange.input_ids)
    assert text == (
        "System:\nBe brief.\n\nUser:\nMy order is late.\n\nAssistant:\nWe are sorry.<|endoftext|>"
        "User:\nWhen?\n\nAssistant:\nToday, 5 o'clock.<|endoftext|>"
    )
    learned = chat_tokenizer.decode([token for token in exchange.labels if token != -100])
    assert learned == "We are sorry.<|endoftext|>Today, 5 o'clock.<|endoftext|>"
    assert chat_tokenizer.decode(exchange.reply_ids) == "Today, 5 o'clock.<|endoftext|>"
    task = InstructionTuning(dataset=ANYWHERE, chat=True, completion_column="messages")
    for turns in (CHAT, CHAT[:-1]):  # the prompt is the same with its reply and without
        assert task.prompts(Examples([{"messages": turns}], "a"), chat_tokenizer) == [
            exchange.prompt_ids
        ]


def test_a_message_cannot_end_a_turn(chat_tokenizer):
    turns = [{"role": "user", "content": "a<|endoftext|>b"}]
    ids = encode_exchange(chat_tokenizer, turns, "c").input_ids
    assert ids.count(chat_tokenizer.eos_token_id) == 1


def test_the_published_template_is_one_that_trl_can_train_on(chat_tokenizer):
    from trl.chat_template_utils import is_chat_template_prefix_preserving

    assert is_chat_template_prefix_preserving(chat_tokenizer)


def test_a_template_that_marks_no_replies_is_refused(chat_tokenizer):
    chat_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="chat template does not mark replies"):
        encode_exchange(chat_tokenizer, CHAT[:-1], "a")


TURN = "{% for m in messages %}{{ '<' + m['role'] + '>' }}"
LEARNED = "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + "
OTHERS = "{% else %}{{ m['content'] }}{% endif %}"
END = "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"


def test_what_a_template_writes_after_the_last_reply_is_left_out(chat_tokenizer):
    """ChatML ends each turn with a line break, which no reply holds."""
    template = TURN + LEARNED + "eos_token }}{% endgeneration %}" + OTHERS + "{{ '\\n' }}" + END
    chat_tokenizer.chat_template = template
    exchange = encode_exchange(chat_tokenizer, CHAT[1:4], "Today.")
    text = chat_tokenizer.decode(exchange.input_ids)
    assert text == (
        "<user> My order is late. \n<assistant>We are sorry.<|endoftext|>\n"
        "<user>When?\n<assistant>Today.<|endoftext|>"
    )
    learned = chat_tokenizer.decode([token for token in exchange.labels if token != -100])
    assert learned == "We are sorry.<|endoftext|>Today.<|endoftext|>"


@pytest.mark.parametrize(
    "ending",
    [
        "'' }}{% endgeneration %}",
        "'' }}{% endgeneration %}{{ eos_token }}",
        "'<end>' }}{% endgeneration %}",
    ],
)
def test_a_template_whose_replies_do_not_end_in_eos_is_refused(chat_tokenizer, ending):
    chat_tokenizer.chat_template = TURN + LEARNED + ending + OTHERS + END
    with pytest.raises(DataError, match=r"not with the EOS token '<\|endoftext\|>'"):
        encode_exchange(chat_tokenizer, CHAT[1:4], "Today.")


@pytest.mark.parametrize("max_length", [16, 20, 30])
def test_a_row_too_long_loses_the_beginning_of_its_prompt(tokenizer, max_length):
    whole = encode_exchange(
        tokenizer, "one two three four five six seven eight\nReply:", "yes, nine"
    )
    truncated = whole.truncated(max_length)
    cut = max(len(whole.input_ids) - max_length, 0)
    assert cut or max_length == 30
    assert truncated.input_ids == whole.input_ids[cut:]
    assert truncated.labels == whole.labels[cut:]
    assert truncated.prompt_ids == whole.prompt_ids[cut:]


def test_a_reply_too_long_does_not_learn_to_end(tokenizer):
    whole = encode_exchange(tokenizer, "a\n", "one two three four five six seven eight")
    truncated = whole.truncated(16)
    assert len(truncated.input_ids) == len(truncated.labels) == 16
    assert truncated.labels[0] == -100
    assert -100 not in truncated.labels[1:]
    assert tokenizer.eos_token_id not in truncated.input_ids


def test_the_loss_is_of_the_replies_alone(tasks, checkpoint, tokenizer, tmp_path):
    """Prompts weigh nothing: the loss is the mean of the replies' tokens, worked out here."""
    trainer = trainer_for(tasks["instruction_tuning"], checkpoint, tokenizer, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(5)]
    loss, _ = loss_of(trainer, rows)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()  # a new adapter adds nothing
    nll, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        text = tokenizer.decode(row["input_ids"])
        reply = tokenizer(text[text.index("\nReply:") + 7 :])["input_ids"]
        assert row["input_ids"][-len(reply) :] == reply
        for position in range(len(row["input_ids"]) - len(reply), len(row["input_ids"])):
            nll -= float(logs[position - 1, row["input_ids"][position]])
            count += 1
    assert loss == pytest.approx(nll / count, rel=1e-5)


def test_labels_of_a_prompt_have_no_weight_in_the_gradient(tasks, checkpoint, tokenizer, tmp_path):
    """The loss of each token, weighed by a variable: its derivative is 0 at every prompt token."""
    trainer = trainer_for(tasks["instruction_tuning"], checkpoint, tokenizer, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(3)]
    batch = trainer.data_collator([dict(row) for row in rows])
    kept = batch["labels"] != -100
    hidden = {}

    def catch(module, inputs, output):
        output.last_hidden_state.retain_grad()
        hidden["states"] = output.last_hidden_state

    base = trainer.model.get_base_model()
    handle = base.transformer.register_forward_hook(catch)
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=kept.sum()).backward()
    handle.remove()
    weight = hidden["states"].grad.abs().sum(-1)  # (batch, length): 0 where nothing is predicted
    predicts = torch.zeros_like(kept)
    predicts[:, :-1] = kept[:, 1:]
    assert (weight[~predicts] == 0).all()
    assert (weight[predicts] > 0).all()


def test_the_end_is_learned(tasks, checkpoint, tokenizer, tmp_path):
    """A row of one long prompt and a reply of one word: training makes the end of it likely."""
    rows = [{"prompt": "late", "completion": "sorry"}]
    examples = Examples(rows, "rows")
    task = replace(tasks["instruction_tuning"], prompt_format="{prompt}\nReply:")
    recipe = Recipe(
        name="ends",
        task=task,
        model=Model(name_or_path=str(checkpoint)),
        train=Train(
            max_steps=30, learning_rate=3e-2, warmup_steps=0, global_batch_size=1, save_steps=None
        ),
        output_dir=str(tmp_path),
        **method("lora"),
    )
    train, held_out = (
        task.features(examples, tokenizer, (), training=which) for which in (True, False)
    )
    model = build_model(recipe, tokenizer, ())
    trainer = build_trainer(
        recipe, model, tokenizer, train=train, scored={"eval": held_out}, labels=()
    )
    before = trainer.score("eval").metrics
    trainer.train()
    after = trainer.score("eval").metrics
    assert (before["ended"], after["ended"]) == (0.0, 1.0)
    assert after["rougeL"] == after["exact_match"] == after["f1"] == 1.0
    assert before["rougeL"] == 0.0


def test_packed_examples_are_isolated(tasks, checkpoint, tokenizer, tmp_path):
    """Packed rows have the loss and the gradients of the same rows one by one."""
    short = [{"prompt": f"{n} are late" * (n % 3 + 1), "completion": f"{n}!" * n} for n in range(9)]
    short = Examples([row for row in short if row["completion"]], "rows")
    task = tasks["instruction_tuning"]
    plain = trainer_for(task, checkpoint, tokenizer, tmp_path, training=short)
    packed = trainer_for(
        replace(task, packing=True), checkpoint, tokenizer, tmp_path, training=short
    )
    assert len(packed.train_dataset) < len(plain.train_dataset) == 8
    row = max(packed.train_dataset, key=lambda row: len(row["seq_lengths"]))
    assert len(row["seq_lengths"]) > 1
    starts = [sum(row["seq_lengths"][:i]) for i in range(len(row["seq_lengths"]))]
    alone = [
        {name: row[name][start : start + length] for name in ("input_ids", "labels")}
        for start, length in zip(starts, row["seq_lengths"], strict=True)
    ]
    given = [{name: each[name] for name in alone[0]} for each in plain.train_dataset]
    for each in alone:
        assert each in given
    packed.model.load_state_dict(plain.model.state_dict())
    together, gradients = loss_of(packed, [row])
    apart, expected = loss_of(plain, alone)
    assert together == pytest.approx(apart, rel=1e-5)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-7)


def test_packing_changes_no_score(tasks, checkpoint, tokenizer, tmp_path):
    """Evaluation is of rows one by one, whether training packs or not."""
    found = [
        trainer_for(
            replace(tasks["instruction_tuning"], packing=packing),
            checkpoint,
            tokenizer,
            tmp_path,
            per_device_eval_batch_size=3,
        )
        .score("eval")
        .metrics
        for packing in (False, True)
    ]
    assert found[0] == found[1]


def test_prompts_that_are_cut_to_the_same_end_are_scored_apart(tokenizer):
    """Else a row would be scored against the replies to other prompts, too."""
    task = InstructionTuning(dataset=ANYWHERE, prompt_format="{prompt}\n", max_length=16)
    replies = ["one " * 20, "two " * 20, "three " * 20]
    rows = [
        {"prompt": prompt, "completion": reply}
        for prompt, reply in zip(["a", "b", "a"], replies, strict=True)
    ]
    features = task.features(Examples(rows, "rows"), tokenizer, (), training=False)
    assert features.report == {"rows": 3, "rows_cut": 3, "prompts": 2}
    assert [tokenizer.decode(prompt.ids) for prompt in features.context] == ["\n", "\n"]
    assert [list(prompt.references) for prompt in features.context] == [
        [replies[0].strip(), replies[2].strip()],
        [replies[1].strip()],
    ]


def test_rows_with_one_prompt_are_scored_once_against_all_their_replies(tokenizer):
    task = InstructionTuning(dataset=ANYWHERE)
    rows = [
        {"prompt": "a b", "completion": ["one", "two"]},
        {"prompt": "c", "completion": {"text": ["three"], "answer_start": [0]}},
        {"prompt": "a b", "completion": "four"},
    ]
    features = task.features(Examples(rows, "rows"), tokenizer, (), training=False)
    assert features.report == {"rows": 3, "rows_cut": 0, "prompts": 2}
    assert [list(prompt.references) for prompt in features.context] == [
        ["one", "two", "four"],
        ["three"],
    ]
    assert [tokenizer.decode([i for i in r["labels"] if i >= 0]) for r in features.dataset] == [
        " one<|endoftext|>",
        " three<|endoftext|>",
        " four<|endoftext|>",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "column 'completion' holds None, not a reply. Columns: prompt"),
        ({"prompt": "a", "completion": " "}, "column 'completion' holds ' '"),
        ({"prompt": "a", "completion": ["b", 3]}, "not a reply"),
        ({"completion": "b"}, "column 'prompt' holds None, not a text"),
        ({"prompt": " ", "completion": "b"}, "the prompt is empty"),
    ],
)
def test_a_row_without_prompt_or_reply_is_refused_with_its_line(tokenizer, row, message):
    task = InstructionTuning(dataset=ANYWHERE)
    with pytest.raises(DataError, match=f"a.jsonl:7: .*{message}"):
        task.features(Examples([row], "a.jsonl", [7]), tokenizer, (), training=True)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (None, "None is not a list of messages"),
        ([], r"\[\] is not a list of messages"),
        ([{"role": "robot", "content": "a"}], "is not a message with a role of system, user"),
        ([{"role": "user", "content": ""}], "has no text"),
        ([{"role": "user", "content": "a"}], "the last message is of the user"),
        ([{"role": "assistant", "content": "a"}], "a reply to nothing"),
    ],
)
def test_a_row_without_a_chat_is_refused_with_its_line(chat_tokenizer, chat, message):
    task = InstructionTuning(dataset=ANYWHERE, chat=True, completion_column="messages")
    rows = Examples([{"messages": chat}], "a.jsonl", [7])
    with pytest.raises(DataError, match=f"a.jsonl:7: .*{message}"):
        task.features(rows, chat_tokenizer, (), training=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b "}, "both replies are 'b'"),
        ({"prompt": "a", "chosen": "b"}, "column 'rejected' holds None"),
        (
            {"chosen": CHAT, "rejected": [*CHAT[:1], *CHAT[3:]]},
            "the two replies have different prompts",
        ),
    ],
)
def test_a_row_without_a_preference_is_refused_with_its_line(chat_tokenizer, row, message):
    task = PreferenceTuning(dataset=ANYWHERE, chat="prompt" not in row)
    rows = Examples([row], "a.jsonl", [7])
    with pytest.raises(DataError, match=f"a.jsonl:7: .*{message}"):
        task.features(rows, chat_tokenizer, (), training=True)


@pytest.mark.parametrize("prompt_format", ["no column", "{", "{}", "{a.b}", "{a[0]}", "{0!r:}}"])
def test_a_malformed_prompt_format_is_refused(prompt_format):
    with pytest.raises(RecipeError, match="task.prompt_format"):
        Recipe(
            name="a",
            task=InstructionTuning(dataset=ANYWHERE, prompt_format=prompt_format),
            model=Model(name_or_path="gpt2"),
        )


@pytest.mark.parametrize(
    ("lora", "message"),
    [(None, "lora: the base"), (Lora(init_lora_weights="pissa"), "'pissa' moves")],
)
def test_preferences_need_a_base_that_is_a_reference(lora, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(
            name="a",
            task=PreferenceTuning(dataset=ANYWHERE),
            model=Model(name_or_path="gpt2"),
            lora=lora,
        )


def log_probability(model, tokenizer, prompt_ids, reply_ids) -> float:
    """Return the log-probability of a reply, token by token."""
    ids = [*prompt_ids, *reply_ids]
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logs[i - 1, ids[i]]) for i in range(len(prompt_ids), len(ids)))


def test_the_base_with_the_adapter_off_is_the_reference(tasks, checkpoint, tokenizer, tmp_path):
    """Loss and rewards of a trained adapter, worked out with the base loaded apart."""
    task = tasks["preference_tuning"]
    trainer = trainer_for(task, checkpoint, tokenizer, tmp_path, save_steps=None)
    assert list(trainer.model.peft_config) == ["default"]
    trainer.train()
    metrics = trainer.score("eval").metrics
    base = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tuned = trainer.model.eval()
    pairs = task.features(load_splits(task.dataset).held_out, tokenizer, (), training=False)
    margins = []
    for row in pairs.dataset:
        rewards = [
            log_probability(tuned, tokenizer, row["prompt_ids"], row[name])
            - log_probability(base, tokenizer, row["prompt_ids"], row[name])
            for name in ("chosen_ids", "rejected_ids")
        ]
        margins.append(task.beta * (rewards[0] - rewards[1]))
    assert metrics["reward_margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-3)
    right = sum(margin > 0 for margin in margins) / len(margins)
    assert metrics["reward_accuracy"] == pytest.approx(right)
    loss = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-3)
    assert metrics["reward_margin"] > 0.01  # two steps moved it


@pytest.mark.parametrize("name", ["8bit", "4bit"])
@pytest.mark.parametrize("task", ["instruction_tuning", "preference_tuning"])
def test_an_adapter_on_a_quantised_base_stays_in_full_precision(
    task, name, helpdesk, checkpoint, tokenizer, tmp_path
):
    trainer = trainer_for(make_tasks(helpdesk)[task], checkpoint, tokenizer, tmp_path, name)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert trained
    assert {p.dtype for p in trained} == {torch.float32}
    assert not trainer.args.bf16
    assert not trainer.args.activation_checkpointing


@pytest.mark.parametrize("task", ["instruction_tuning", "preference_tuning"])
def test_the_launcher_decides_on_the_precision(
    task, helpdesk, checkpoint, tokenizer, tmp_path, monkeypatch
):
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    trainer = trainer_for(make_tasks(helpdesk)[task], checkpoint, tokenizer, tmp_path)
    assert trainer.accelerator.mixed_precision == "bf16"
    AcceleratorState._reset_state()


def test_trl_sends_no_telemetry(tasks, checkpoint, tokenizer, tmp_path, monkeypatch):
    import trl.trainer.base_trainer

    def called(*arguments, **options):
        raise AssertionError("telemetry")

    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", called)
    trainer = trainer_for(tasks["instruction_tuning"], checkpoint, tokenizer, tmp_path)
    trainer.train()
    assert not list(tmp_path.rglob("checkpoints/README.md"))


def test_label_smoothing_equals_its_formula(tasks, checkpoint, tokenizer, tmp_path):
    task = replace(tasks["instruction_tuning"], label_smoothing=0.1)
    trainer = trainer_for(task, checkpoint, tokenizer, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(4)]
    loss, _ = loss_of(trainer, rows)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                total += 0.9 * float(-logs[position - 1, label])
                total += 0.1 * float(-logs[position - 1].mean())
                count += 1
    assert loss == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("chat", [False, True])
def test_a_reply_is_printed_from_its_first_word(chat, checkpoint, tmp_path, capsys):
    """As it comes, after a beam search, and for the rows of a file, which all say the same."""
    from pipelines.flow import run
    from pipelines.inference.generate import generate_file, generate_text

    asked = [{"role": "user", "content": "late"}]
    reply = "sorry, on its way"
    row = {"messages": [*asked, {"role": "assistant", "content": reply}]}
    if not chat:
        row = {"prompt": "late", "messages": reply}
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps(row) + "\n") * 4)
    task = InstructionTuning(
        dataset=DatasetSource(path=str(file), eval_fraction=0.5),
        prompt_format="{prompt}\nReply:",
        chat=chat,
        completion_column="messages",
        generation=Generation(max_new_tokens=20),
    )
    train = Train(max_steps=40, learning_rate=2e-2, global_batch_size=2, save_steps=None)
    recipe = Recipe(
        name="late",
        task=replace(task, max_length=128),
        model=Model(name_or_path=str(checkpoint)),
        train=train,
        output_dir=str(tmp_path / "out"),
        **method("lora"),
    )
    metrics = run(recipe)
    assert (metrics["exact_match"], metrics["ended"]) == (1.0, 1.0)
    capsys.readouterr()
    for options in ({}, {"num_beams": 2}):
        generate_text(recipe.output_dir, "late", options)
        assert capsys.readouterr().out == f"{reply}\n"
    generate_file(recipe.output_dir, file, {})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"text": reply, "ended": True}] * 4


def test_a_typed_prompt_needs_a_format_of_one_column():
    task = InstructionTuning(dataset=ANYWHERE, prompt_format="{question} {context}")
    with pytest.raises(DataError, match="columns question, context. Give rows"):
        task.row("Who?")


@pytest.mark.parametrize("kind", [InstructionTuning, PreferenceTuning])
def test_too_many_truncated_rows_stop_a_reply_task(tokenizer, kind):
    row = {"prompt": "late " * 40, "completion": "sorry", "chosen": "sorry", "rejected": "no"}
    short = row | {"prompt": "late"}
    examples = Examples([row, short, short, short], "rows")
    task = kind(dataset=ANYWHERE, max_length=32, max_truncated_fraction=0.25)
    assert 1 in task.features(examples, tokenizer, (), training=True).report.values()
    strict = replace(task, max_truncated_fraction=0.2)
    with pytest.raises(DataError, match="1 of 4 rows do not fit"):
        strict.features(examples, tokenizer, (), training=True)
