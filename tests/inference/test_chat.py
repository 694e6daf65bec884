"""Conversations: their prompts, and `gpt2-recipes chat` through a pipe and at a terminal."""

import os
import time
from dataclasses import replace

import pytest

from helpers.factories import make_tasks, short_recipe
from helpers.terminal import at_terminal
from pipelines.cli import console
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError
from pipelines.flow import run
from pipelines.hub.load import load_result
from pipelines.inference.chat import fit_turns
from pipelines.inference.chat_terminal import Printer, visible
from pipelines.models.generation import continue_prompts
from pipelines.recipe.values import Lora
from pipelines.tasks.generation import Generation, Turn
from pipelines.tasks.instruction import InstructionTuning

SHORT = ("--max-new-tokens", "12")


@pytest.fixture(scope="module")
def results(adapters, tmp_path_factory, checkpoint, helpdesk):
    """A model that continues texts, one that was tuned on chats, and a classifier, by name."""
    folder, tasks = tmp_path_factory.mktemp("results"), make_tasks(helpdesk)
    chat = replace(tasks["instruction_tuning"], chat=True, prompt_format="{prompt}")
    one_step = {"max_steps": 1}  # after which texts still have words
    for name, task in {"text": tasks["causal_lm"], "chat": chat}.items():
        run(short_recipe(task, checkpoint, folder / name, lora=Lora(r=4), train=one_step))
    classifier = adapters("text_classification") / "text_classification"
    return {"text": folder / "text", "chat": folder / "chat", "classifier": classifier}


@pytest.fixture
def piped(monkeypatch, capsys):
    """Return the exit code, the output and the errors of a chat whose input is a pipe."""

    def talk(lines, *words):
        reading, writing = os.pipe()
        with os.fdopen(writing, "w") as pipe:  # which holds 64 KB
            pipe.write(lines)
        monkeypatch.setattr("sys.argv", ["gpt2-recipes", "chat", *map(str, words)])
        capsys.readouterr()
        with os.fdopen(reading) as pipe, monkeypatch.context() as patched:
            patched.setattr("sys.stdin", pipe)
            with pytest.raises(SystemExit) as stopped:
                console()
        printed = capsys.readouterr()
        return stopped.value.code, printed.out, printed.err

    return talk


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def test_a_chat_is_formatted_by_the_template_with_all_turns(results):
    loaded = load_result(results["chat"])
    turns = [Turn("My lamp is broken.", "Send it back.")]
    prompt, num_dropped = fit_turns(loaded, turns, "Where to?", Generation(max_new_tokens=8))
    assert loaded.tokenizer.decode(prompt) == (
        "User:\nMy lamp is broken.\n\nAssistant:\nSend it back.<|endoftext|>"
        "User:\nWhere to?\n\nAssistant:\n"
    )
    assert num_dropped == 0


def test_a_language_model_continues_all_that_was_written(results):
    loaded = load_result(results["text"])
    turns = [Turn("My order", " is late.")]
    prompt, _ = fit_turns(loaded, turns, "It was", Generation(max_new_tokens=8))
    eos = loaded.tokenizer.eos_token_id
    assert prompt == [eos, *ids(loaded.tokenizer, "My order is late.\nIt was")]


def test_single_prompts_have_no_earlier_turns_and_no_further_columns(tokenizer):
    task = InstructionTuning(
        dataset=DatasetSource(path="nowhere"), prompt_format="Do: {instruction}\nIn: {input}\nOut:"
    )
    assert not task.keeps_turns
    assert task.conversation([], "Sum it up.", tokenizer) == ids(
        tokenizer, "Do: Sum it up.\nIn: \nOut:"
    )
    assert task.chat_hint == (
        "It was trained on single prompts: earlier messages are not read. What you type is its "
        "instruction; input stays empty."
    )


def test_the_oldest_turns_are_dropped_until_a_reply_fits(results):
    loaded = load_result(results["text"])
    assert loaded.model.config.n_positions == 256
    generation = Generation(max_new_tokens=100)  # 156 positions are left for the prompt
    size = len(ids(loaded.tokenizer, "a b c\n"))
    turns = [Turn("a b c", "")] * 60
    prompt, num_dropped = fit_turns(loaded, turns, "end", generation)
    # EOS and "end" take 1 and k positions, each turn that is kept `size`
    last = len(ids(loaded.tokenizer, "end"))
    assert 60 - num_dropped == (156 - 1 - last) // size
    assert len(prompt) == 1 + (60 - num_dropped) * size + last
    more = replace(generation, max_new_tokens=1000)  # half of the positions are left
    assert 60 - fit_turns(loaded, turns, "end", more)[1] == (128 - 1 - last) // size


def test_a_message_longer_than_the_model_is_refused(results):
    loaded = load_result(results["text"])
    with pytest.raises(DataError, match="message: .* leave no room .* 256 positions"):
        fit_turns(loaded, [Turn("a", "b")], "word " * 400, Generation())


def test_a_pipe_gets_the_replies_and_nothing_else(results, piped):
    loaded = load_result(results["text"])
    generation = Generation(max_new_tokens=12)
    turns: list[Turn] = []
    replies = []
    for message in ("My lamp", "It was"):
        prompt, _ = fit_turns(loaded, turns, message, generation)
        (reply,) = continue_prompts(loaded.model, loaded.tokenizer, [prompt], generation)
        turns.append(Turn(message, reply.text))
        replies.append("".join(map(visible, reply.text)) + "\n")
    lines = ["My lamp", "", "It was", "/reset", "My lamp", "/rest", "word " * 400, "not reached"]
    code, printed, errors = piped("\n".join(lines), results["text"], *SHORT)
    assert printed == "".join([*replies, replies[0]])
    begun, unknown, too_long = errors.splitlines()
    assert begun == "(The conversation begins again.)"
    assert unknown == "(/rest: no such command. Did you mean /reset?)"
    assert "leave no room" in too_long
    assert code == 3


@pytest.mark.parametrize(
    ("name", "words", "code", "message"),
    [
        ("classifier", (), 3, "TextClassification generates no text. Use `gpt2-recipes predict`."),
        ("text", ("--temperature", "0"), 2, "--temperature: 0.0 is out of range"),
        ("text", ("--do-sample", "--no-do-sample"), 2, "--do-sample: contradicts --no-do-sample"),
    ],
)
def test_what_cannot_be_talked_with_is_refused(results, piped, name, words, code, message):
    stopped, printed, errors = piped("hi\n", results[name], *words)
    assert (stopped, printed) == (code, "")
    [line] = errors.splitlines()
    assert message in line


def test_a_terminal_streams_stops_forgets_and_ends(results):
    options = ("--max-new-tokens", "200", "--do-sample", "--seed", "1")
    with at_terminal("chat", results["text"], *options, NO_COLOR="1") as typist:
        typist.wait_for("It continues texts")
        typist.wait_for("\n> ")
        typist.type("/help\r")
        assert "/reset  forget the conversation" in typist.wait_for("\n> ")
        typist.type("/x\r")
        assert "(/x: no such command. /help lists the commands.)" in typist.wait_for("\n> ")
        typist.type("half a line")
        typist.wait_for("half a line")
        typist.interrupt("\n> ")
        typist.type("Hello\r")
        started = time.perf_counter()
        typist.wait_for("Hello\r\n")
        while not typist.shown.strip():
            assert typist.read(10)
        assert time.perf_counter() - started < 10  # 0.4 s on a machine that does nothing else
        reply = typist.wait_for("\n> ")
        assert max(map(len, reply.splitlines())) <= 80
        for _ in range(5):  # a reply may end before the key is pressed
            typist.type("Again\r")
            typist.wait_for("Again\r\n")
            typist.read(10)
            if "(Stopped.)" in typist.interrupt("\n> "):
                break
        else:
            pytest.fail("no reply was stopped")
        typist.type("word " * 300 + "\r")
        assert "leave no room" in typist.wait_for("\n> ")
        typist.type("/reset\r")
        assert "(The conversation begins again.)" in typist.wait_for("\n> ")
        typist.type("Hello\r")
        typist.wait_for("Hello\r\n")
        assert typist.wait_for("\n> ") == reply
        typist.type("\x04")
        assert typist.end() == 0


def test_lines_of_a_reply_break_between_words(capsys, monkeypatch):
    printer = Printer()
    printer.width = 10
    pieces = ("one two ", "three ", "\nfour ", "a", "unbroken-and-long ", "\x1b[2J", "日本 日本")
    for piece in pieces:
        printer.print(piece)
    # "one two " leaves 2 columns, "unbroken-and-long" ends in column 7 of its second line, the
    # escape has 7 characters, and each Chinese one takes 2 columns
    assert capsys.readouterr().out == (
        "one two \nthree \nfour a\nunbroken-and-long \n\\x1b[2J\n日本 日本"
    )
