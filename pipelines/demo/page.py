"""The page: what a task takes and gives, as components of Gradio, an extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from pipelines.data.rows import Examples
from pipelines.demo.answers import answered, bars, chosen, highlighted
from pipelines.demo.components import (
    check_typed,
    listen,
    messages_of,
    option_inputs,
    predict_one,
    row_of,
    shown_errors,
    text_inputs,
    with_options,
)
from pipelines.hub.escaping import escape_markdown
from pipelines.hub.load import LoadedResult
from pipelines.inference.chat import fit_turns, stream_reply
from pipelines.models.generation import check_room
from pipelines.tasks.generation import Turn

CSS = """
footer {display: none !important}
.gradio-container {max-width: 60rem !important; margin: auto !important}
#context .textfield {word-break: normal; overflow-wrap: anywhere}
"""
WAITING = 64  # requests that may wait; a further one is refused


def make_page(loaded: LoadedResult, examples: Sequence[Sequence[str]]) -> gr.Blocks:
    """Return the page of a result, with examples of its inputs. One request runs at a time."""
    name = loaded.recipe.name
    page = gr.Blocks(title=name, analytics_enabled=False)
    with page:
        gr.Markdown(f"# {escape_markdown(name)}\n{escape_markdown(describe(loaded))}")
        inputs = PARTS[loaded.recipe.task.interface.gives](loaded)
        if examples:
            gr.Examples([list(each) for each in examples], inputs, cache_examples=False)
    page.queue(default_concurrency_limit=1, max_size=WAITING, api_open=False)
    return page


def describe(loaded: LoadedResult) -> str:
    """Return the task, and the score with its interval and rows."""
    metrics, task = loaded.metrics, loaded.recipe.task
    primary = metrics["primary"]
    low, high = metrics["confidence_interval"]
    scored = f"{metrics[primary]:.4f} (95 % {low:.4f} to {high:.4f}) on {metrics['rows']:,} rows"
    return f"{type(task).__name__}, {primary} {scored}."


def show_labels(loaded: LoadedResult) -> list[gr.Textbox]:
    """Lay out a classification with one label or several; return its inputs."""
    thresholds = loaded.recipe.task.thresholds_of(loaded.labels)
    inputs = text_inputs(loaded)
    button = gr.Button("Classify", variant="primary")
    several = bool(thresholds)
    given = gr.Textbox(label="Labels", interactive=False, visible=several, elem_id="labels")
    scores = gr.Label(label="Probabilities", show_heading=not several, elem_id="scores")

    def classify(*texts: str) -> tuple[str, dict[str, float]]:
        prediction = predict_one(loaded, texts)
        return chosen(prediction) if several else "", bars(prediction, thresholds)

    listen(button, inputs, classify, [given, scores])
    return inputs


def show_number(loaded: LoadedResult) -> list[gr.Textbox]:
    """Lay out a regression; return its inputs."""
    inputs = text_inputs(loaded)
    button = gr.Button("Predict", variant="primary")
    value = gr.Textbox(label="Value", interactive=False, elem_id="value")
    listen(button, inputs, lambda *texts: f"{predict_one(loaded, texts)['value']:.4g}", [value])
    return inputs


def show_answer(loaded: LoadedResult) -> list[gr.Textbox]:
    """Lay out a question about a context; return its inputs."""
    inputs = text_inputs(loaded)
    button = gr.Button("Answer", variant="primary")
    answer = gr.Textbox(label="Answer", interactive=False, elem_id="answer")
    context = gr.HighlightedText(label="In its context", elem_id="context")

    def find(*texts: str) -> tuple[str, list[tuple[str, str | None]]]:
        prediction = predict_one(loaded, texts)
        return answered(prediction), highlighted(texts[-1], prediction)

    listen(button, inputs, find, [answer, context])
    return inputs


def show_text(loaded: LoadedResult) -> list[gr.Textbox]:
    """Lay out a text that is continued, or a prompt that is replied to; return its inputs."""
    task, inputs = loaded.recipe.task, text_inputs(loaded)
    with gr.Row():
        button = gr.Button("Write", variant="primary")
        stop = gr.Button("Stop")
    written = gr.Textbox(label="Written", lines=4, interactive=False, elem_id="written")
    options = option_inputs(task.default_generation)

    def write(*given: Any) -> Iterator[str]:
        texts, chosen_options = given[: len(inputs)], given[len(inputs) :]
        row = row_of(loaded, texts)
        with shown_errors():
            (prompt,) = task.prompts(Examples([row], "input"), loaded.tokenizer)
            check_room(loaded.model, [prompt], lambda _: "input")
            generation = with_options(task.default_generation, *chosen_options)
            yield from stream_reply(loaded, prompt, generation)

    events = listen(button, [*inputs, *options], write, [written], submit=inputs)
    stop.click(None, cancels=events)
    return inputs


def show_chat(loaded: LoadedResult) -> list[gr.Textbox]:
    """Lay out a conversation; return its input."""
    task = loaded.recipe.task
    chat = gr.Chatbot(label="Conversation", render_markdown=False, buttons=[], elem_id="chat")
    turns = gr.State([])
    box = gr.Textbox(label="Message", elem_id="input-0")
    with gr.Row():
        button = gr.Button("Send", variant="primary")
        stop = gr.Button("Stop")
        clear = gr.Button("Begin again")
    options = option_inputs(task.default_generation)

    def reply(message: str, before: list[Turn], *chosen_options: Any) -> Iterator[tuple[Any, ...]]:
        check_typed([message])
        generation = with_options(task.default_generation, *chosen_options)
        with shown_errors():
            prompt, num_dropped = fit_turns(loaded, before, message, generation)
            if num_dropped:
                gr.Info(f"The model no longer reads the oldest {num_dropped} turns.")
            kept = before[num_dropped:]
            yield "", kept, messages_of([*kept, Turn(message, "")])
            for text in stream_reply(loaded, prompt, generation):
                now = [*kept, Turn(message, text)]
                yield "", now, messages_of(now)

    events = listen(button, [box, turns, *options], reply, [box, turns, chat], submit=[box])
    stop.click(None, cancels=events)
    clear.click(lambda: ([], []), None, [turns, chat], cancels=events, api_visibility="private")
    return [box]


PARTS: dict[str, Callable[[LoadedResult], list[gr.Textbox]]] = {
    "label": show_labels,
    "labels": show_labels,
    "number": show_number,
    "answer": show_answer,
    "text": show_text,
    "chat": show_chat,
}
"""What lays out the page, by what the task gives."""
