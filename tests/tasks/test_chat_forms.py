"""Chats as foreign data holds them."""

import json

import numpy as np
import pytest

from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.preference import PreferenceTuning
from pipelines.tasks.replies import CHAT_TEMPLATE

ANYWHERE = DatasetSource(path="nowhere")
MESSAGES = InstructionTuning(dataset=ANYWHERE, chat=True, completion_column="messages")
DPO = PreferenceTuning(dataset=ANYWHERE, chat=True)
ASKED = [{"role": "user", "content": "Where is my lamp?"}]
YES, NO = ({"role": "assistant", "content": text} for text in ("On its way.", "No."))


def read(task, row):
    """Return what a task reads of a row."""
    return task.example(Examples([row], "a.jsonl", [7]), 0, row, ())


def part(text, kind="text"):
    """Return a content of one part."""
    return [{"type": kind, "text": text}]


LAMP = "Where is my lamp?"


@pytest.mark.parametrize(
    "chat",
    [
        [*ASKED, YES],
        [{"from": "human", "value": LAMP}, {"from": "gpt", "value": "On its way."}],
        [{"from": "user", "value": LAMP}, {"from": "assistant", "value": "On its way."}],
        [
            {"role": "User", "content": part(LAMP)},
            {"role": "assistant", "content": ["On its way."]},
        ],
        [{"role": "user", "content": part(LAMP, "input_text")}, YES],
        [{"role": "user", "content": [*part("Where "), *part("is my lamp?")]}, YES],
        [*ASKED, YES | {"tool_calls": None, "name": "helper", "weight": 1}],
        [ASKED[0] | {"tool_calls": []}, YES],
        np.array([*ASKED, YES], dtype=object),
        json.dumps([*ASKED, YES]),
        str([*ASKED, YES]),
        f"\n\nHuman: {LAMP}\n\nAssistant: On its way.",
        f"Human: {LAMP}\n\nAssistant: On its way.\n",
    ],
)
def test_a_chat_is_read_in_each_form(chat):
    assert read(MESSAGES, {"messages": chat}) == (ASKED, ["On its way."])


def test_all_turns_keep_their_roles_and_order():
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"},
        {"from": "human", "value": "c\n\nd"},
        {"from": "gpt", "value": "e"},
    ]
    prompt, replies = read(MESSAGES, {"messages": turns})
    assert [turn["role"] for turn in prompt] == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in prompt] == ["Be brief.", "a", "b", "c\n\nd"]
    assert replies == ["e"]
    hh = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nd\n\nAssistant: e"
    assert read(MESSAGES, {"messages": hh}) == (prompt[1:], ["e"])
    developer = [{"role": "developer", "content": "Be brief."}, *ASKED, YES]
    assert read(MESSAGES, {"messages": developer})[0][0]["role"] == "system"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": [YES], "rejected": [NO]},
        {"prompt": ASKED, "chosen": YES, "rejected": NO},
        {"prompt": ASKED, "chosen": "On its way.", "rejected": "No."},
        {"prompt": LAMP, "chosen": "On its way.", "rejected": "No."},
        {"prompt": LAMP, "chosen": [*ASKED, YES], "rejected": [*ASKED, NO]},  # UltraFeedback
        {"chosen": [*ASKED, YES], "rejected": [*ASKED, NO]},
        {
            "chosen": f"\n\nHuman: {LAMP}\n\nAssistant: On its way.",
            "rejected": f"\n\nHuman: {LAMP}\n\nAssistant: No.",
        },
        {
            "prompt": f"\n\nHuman: {LAMP}\n\nAssistant:",
            "chosen": " On its way.",
            "rejected": " No.",
        },
    ],
)
def test_a_preference_is_read_in_each_form(row):
    assert read(DPO, row) == (ASKED, "On its way.", "No.")


def test_a_reply_in_its_own_column_follows_the_messages_of_the_prompt():
    task = InstructionTuning(dataset=ANYWHERE, chat=True, prompt_format="{history}")
    row = {"history": [*ASKED, YES, {"role": "user", "content": "When?"}], "completion": "[1, 2]"}
    assert read(task, row) == (row["history"], ["[1, 2]"])
    assert task.prompt({"history": ASKED}, "a") == ASKED  # to generate
    greeting = [YES, *ASKED, NO]  # a chat may begin with the assistant
    assert read(MESSAGES, {"messages": greeting}) == (greeting[:-1], ["No."])


def test_every_form_of_a_chat_is_rendered_the_same(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE
    rows = [
        {"messages": [*ASKED, YES]},
        {"messages": [{"from": "human", "value": LAMP}, {"from": "gpt", "value": "On its way."}]},
        {"messages": [{"role": "user", "content": part(LAMP)}, YES]},
    ]
    dataset = MESSAGES.features(Examples(rows, "rows"), tokenizer, (), training=True).dataset
    tokenizer.chat_template = None
    first = dataset[0]["input_ids"].tolist()
    assert tokenizer.decode(first).startswith("User:\nWhere is my lamp?\n\nAssistant:\nOn its way.")
    assert all(row["input_ids"].tolist() == first for row in dataset)


def test_a_tokenizer_from_scratch_is_trained_on_the_messages():
    from pipelines.inputs import texts

    row = {"id": "x", "messages": [{"role": "user", "content": part("a")}, YES], "n": 3}
    other = {"messages": [{"from": "human", "value": "b"}], "answers": {"text": ["c"]}}
    assert list(texts(Examples([row, other], "rows"))) == ["x", "a", "On its way.", "b"]


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}


@pytest.mark.parametrize(
    ("chat", "text"),
    [
        ([*ASKED, CALL, {"role": "tool", "content": "ok"}, YES], "tool.*not supported.*leave"),
        ([*ASKED, {"role": "tool", "content": "ok"}, YES], "is a message of a tool"),
        ([{"from": "human", "value": "a"}, {"from": "function_call", "value": "b"}], "of a tool"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, YES],
            "type 'image_url'; only texts",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio"}]}, YES],
            "'input_audio'; only texts",
        ),
        ([*ASKED, YES | {"weight": 0}], "has weight 0"),
        ([*ASKED, YES | {"train": False}, *ASKED, YES], "has train False: every reply"),
        ([*ASKED, YES | {"loss": 0.0}], "has loss 0.0"),
        ([*ASKED, {"role": "assistant", "content": None}], "has no text"),
        ([*ASKED, {"role": "assistant", "content": []}], "has no text"),
        ([{"from": "robot", "value": "a"}], "not a message with a role of system, user, assistant"),
        (["a", "b"], "'a' is not a message"),
        (5, "5 is not a list of messages"),
        (f"\n\nHuman: {LAMP}\n\nAssistant:", "the last message is of the user"),
        (f"\n\nHuman: \n\nAssistant: {LAMP}", "has no text"),
        ("On its way.", "a reply to nothing"),
    ],
)
def test_an_unreadable_chat_is_refused_with_the_reason(chat, text):
    with pytest.raises(DataError, match=f"a.jsonl:7: .*{text}"):
        read(MESSAGES, {"messages": chat})


def test_the_message_names_the_option_that_reads_the_row():
    plain = InstructionTuning(dataset=ANYWHERE)
    preference = PreferenceTuning(dataset=ANYWHERE)
    hh = "\n\nHuman: a\n\nAssistant: b"
    for task, row, text in [
        (plain, {"prompt": "a", "completion": [YES]}, "It holds messages: use --task.chat"),
        (plain, {"prompt": ASKED, "completion": "b"}, "It holds messages: use --task.chat"),
        (preference, {"chosen": hh, "rejected": hh}, "Human: and Assistant:. Use --task.chat"),
        (preference, {"prompt": ASKED, "chosen": [YES], "rejected": [NO]}, "use --task.chat"),
        (
            InstructionTuning(dataset=ANYWHERE, chat=True),
            {"conversations": [*ASKED, YES]},
            "Messages are in column conversations: use --task.completion-column",
        ),
    ]:
        with pytest.raises(DataError, match=f"a.jsonl:7: .*{text}"):
            read(task, row)


def test_a_chat_has_one_column_of_messages_before_the_reply():
    with pytest.raises(RecipeError, match=r"task.prompt_format: names the one column"):
        Recipe(
            name="a",
            task=InstructionTuning(dataset=ANYWHERE, chat=True, prompt_format="{a} {b}"),
            model=Model(name_or_path="b"),
        )


def test_replies_that_rouge_ignores_are_cautioned():
    task = InstructionTuning(dataset=ANYWHERE)
    rows = [{"prompt": "a", "completion": text} for text in ("今天到。", "明天。", "5 o'clock")]
    [text] = task.label_cautions(Examples(rows, "rows"))
    assert text.startswith("2 of 3 replies have no Latin letter or digit")
    assert not list(task.label_cautions(Examples(rows[1:], "rows")))


def test_unread_columns_next_to_a_chat_are_cautioned():
    rows = [
        {"messages": [*ASKED, YES], "system": "Be brief.", "tools": []},
        {"messages": [*ASKED, YES], "system": None},
    ]
    [text] = MESSAGES.label_cautions(Examples(rows, "rows"))
    assert text.startswith("column 'system' of 1 rows is not read")
