"""Pages of results in Chromium: type, press, read; and `gpt2-recipes demo` as a command."""

import json
import re
import socket
from dataclasses import replace

import pytest

from helpers.browser import MISSING, REASON, run_in_browser
from helpers.factories import make_tasks, short_recipe
from pipelines.addresses import usable_port
from pipelines.cli import console
from pipelines.data.source import DatasetSource
from pipelines.demo.serve import served_page
from pipelines.errors import RecipeError
from pipelines.flow import run
from pipelines.hub.load import load_result
from pipelines.inference.chat import fit_turns, stream_reply
from pipelines.inference.loaded_model import load
from pipelines.models.generation import continue_prompts
from pipelines.recipe.values import Lora
from pipelines.tasks.generation import Generation, Turn
from pipelines.tasks.text_classification import TextClassification

pytest.importorskip("gradio", reason="the extra demo is not installed")
in_browser = pytest.mark.skipif(bool(MISSING), reason=REASON)
HOSTILE = "<img src=http://example.com/x.png> ![](http://example.com/y.png) My parcel is late."


@pytest.fixture(scope="module")
def results(adapters, tmp_path_factory, checkpoint, helpdesk):
    """A result for each kind of page, by its name."""
    folder = tmp_path_factory.mktemp("results")
    rows = [{"text": f"number {i}", "label": ["big", "even"][i % 2 :]} for i in range(32)]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    several = TextClassification(
        dataset=DatasetSource(path=str(folder), eval_split="test"),
        problem_type="multi_label_classification",
        tune_thresholds=True,
        max_length=64,
    )
    tasks = make_tasks(helpdesk)
    chat = replace(tasks["instruction_tuning"], chat=True, prompt_format="{prompt}")
    two_steps = {"max_steps": 2}  # after which texts still have words
    for name, task in {"labels": several, "chat": chat, "text": tasks["causal_lm"]}.items():
        run(short_recipe(task, checkpoint, folder / name, lora=Lora(r=4), train=two_steps))
    trained = adapters("text_classification", "question_answering")
    return {
        "label": trained / "text_classification",
        "labels": folder / "labels",
        "answer": trained / "question_answering",
        "text": folder / "text",
        "chat": folder / "chat",
    }


def use(loaded, steps, tmp_path):
    """Return what the page of a result shows at two widths; it must be clean at both."""
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    with served_page(loaded, "127.0.0.1", usable_port("127.0.0.1", 0)) as url:
        views = run_in_browser("use_page.mjs", url, tmp_path / "steps.json", tmp_path)
    for view in views:
        assert (view["errors"], view["elsewhere"], view["overflow"]) == ([], [], 0)
        assert (tmp_path / f"{view['width']}.png").stat().st_size > 10_000
    wide, narrow = (view["texts"] for view in views)
    assert wide == narrow
    return wide


@in_browser
def test_a_page_shows_the_probability_of_every_label(results, tmp_path):
    loaded = load(results["label"])
    (expected,) = loaded.predict(HOSTILE)
    steps = [
        {"press": "Classify"},
        {"read": ".toast-wrap", "until": "Type a text first"},
        {"fill": "#input-0 textarea", "text": HOSTILE},
        {"press": "Classify"},
        {"read": "#scores", "until": "%$"},
        {"read": "body", "until": "Examples"},
    ]
    _, shown, whole = use(loaded, steps, tmp_path)
    lines = shown.splitlines()
    assert expected["label"] in lines
    for label, score in expected["scores"].items():
        assert f"{score:.0%}" in lines[lines.index(label, 2) :][:3]
    accuracy = loaded.metrics["accuracy"]
    assert f"TextClassification, accuracy {accuracy:.4f} (95 % " in whole


@in_browser
def test_a_page_shows_labels_above_their_thresholds(results, tmp_path):
    loaded = load(results["labels"])
    (expected,) = loaded.predict("number 3")
    thresholds = loaded.task.thresholds_of(loaded.labels)
    given = ", ".join(expected["labels"])
    assert given
    steps = [
        {"fill": "#input-0 textarea", "text": "number 3"},
        {"press": "Classify"},
        {"read": "#labels", "until": f"^{given}\nLabels$"},
        {"read": "#scores", "until": "%$"},
    ]
    _, scores = use(loaded, steps, tmp_path)
    for label in ("big", "even"):
        assert f"{label} (above {thresholds[label]:.0%})" in scores


@in_browser
@pytest.mark.parametrize("null_score_diff_threshold", [1e9, -1e9])
def test_a_page_marks_an_answer_or_says_that_there_is_none(
    results, tmp_path, null_score_diff_threshold
):
    loaded = load(results["answer"])
    task = replace(loaded.task, null_score_diff_threshold=null_score_diff_threshold)
    loaded = replace(loaded, recipe=replace(loaded.recipe, task=task))
    row = {"question": "What?", "context": "The lamp is broken and the desk is late."}
    (expected,) = loaded.predict(row)
    steps = [
        {"fill": "#input-0 textarea", "text": row["question"]},
        {"fill": "#input-1 textarea", "text": row["context"]},
        {"key": "Shift+Enter", "in": "#input-1 textarea"},
        {"read": "#answer", "until": "%\\)\nAnswer$"},
        {"read": "#context", "until": "\\.$"},
    ]
    answer, context = use(loaded, steps, tmp_path)
    if null_score_diff_threshold > 0:
        assert expected["answer"]
        assert f"{expected['answer']} (" in answer
        assert "answer" in context.lower()
    else:
        assert "no answer in this context (" in answer
        assert "answer" not in context.lower()


@in_browser
def test_a_page_continues_a_text_also_where_there_is_a_proxy(results, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    loaded = load(results["text"])
    (expected,) = loaded.generate("My lamp")
    end = expected.text.rstrip()[-12:]
    steps = [
        {"fill": "#input-0 textarea", "text": "My lamp"},
        {"press": "Write"},
        {"read": "#written", "until": re.escape(end) + "\\s*\nWritten"},
    ]
    (written,) = use(loaded, steps, tmp_path)
    assert written == f"{expected.text.lstrip()}\nWritten"


@in_browser
def test_a_page_replies_in_a_chat_after_the_turns_before(results, tmp_path):
    loaded = load(results["chat"])
    generation = loaded.task.default_generation
    turns: list[Turn] = []
    for message in (HOSTILE, "Again"):
        prompt, _ = fit_turns(loaded, turns, message, generation)
        (reply,) = continue_prompts(loaded.model, loaded.tokenizer, [prompt], generation)
        turns.append(Turn(message, reply.text.strip()))
    steps = []
    for number, turn in enumerate(turns):
        words = map(re.escape, turn.reply.split())
        whole = "^\\s*" + "\\s+".join(words) + "\\s*$"
        steps += [
            {"fill": "#input-0 textarea", "text": turn.message},
            {"key": "Enter", "in": "#input-0 textarea"},
            {"read": f"#chat .bot .message >> nth={number}", "until": whole},
        ]
    steps.append({"read": "#chat .user .message >> nth=0", "until": re.escape(HOSTILE)})
    use(loaded, steps, tmp_path)


def test_a_reply_grows_and_ends_where_nobody_reads_it(results):
    loaded = load_result(results["text"])
    prompt, _ = fit_turns(loaded, [], "My lamp", Generation(max_new_tokens=40))
    generation = Generation(max_new_tokens=40)
    (whole,) = continue_prompts(loaded.model, loaded.tokenizer, [prompt], generation)
    grown = list(stream_reply(loaded, prompt, generation))
    assert len(grown) > 3
    assert all(after.startswith(before) for before, after in zip(grown, grown[1:], strict=False))
    assert grown[-1] == whole.text
    forwards = []
    hook = loaded.model.register_forward_hook(lambda *_: forwards.append(1), always_call=True)
    base = loaded.model.get_base_model()
    base.register_forward_hook(lambda *_: forwards.append(1))
    stream = stream_reply(loaded, prompt, Generation(max_new_tokens=200))
    next(stream)
    stream.close()
    hook.remove()
    assert 0 < len(forwards) < 100


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        words = ["demo", str(tmp_path / "none"), "--port", port]
        monkeypatch.setattr("sys.argv", ["gpt2-recipes", *words])
        with pytest.raises(SystemExit, match="2"):
            console()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"--port: {port} is in use. Give another, or 0 for a free one.\n"


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("256.1.1.1", 0, "host: '256.1.1.1' is no address of this machine"),
        ("10.254.1.2", 0, "host: '10.254.1.2' is no address of this machine"),
        ("127.0.0.1", 70_000, "port: 70000 cannot be used"),
    ],
)
def test_an_address_that_cannot_be_used_is_named(host, port, message):
    with pytest.raises(RecipeError, match=message):
        usable_port(host, port)
