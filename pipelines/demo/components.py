"""Parts of pages, by Gradio, an extra: inputs, options, events and errors."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gradio as gr

from pipelines.data.rows import Examples
from pipelines.errors import RunError
from pipelines.hub.load import LoadedResult
from pipelines.inference.predict import predict_examples
from pipelines.tasks.generation import Generation, Turn


def text_inputs(loaded: LoadedResult) -> list[gr.Textbox]:
    """Return a text box for each column that the task reads."""
    columns = loaded.recipe.task.interface.columns
    return [
        gr.Textbox(label=name, lines=2, max_lines=12, elem_id=f"input-{index}")
        for index, name in enumerate(columns)
    ]


def option_inputs(generation: Generation, *, render: bool = True) -> list[Any]:
    """Return the options of generation that a visitor may change, from the recipe's."""
    made: list[Any] = [
        gr.Slider(
            1,
            max(512, generation.max_new_tokens),
            generation.max_new_tokens,
            step=1,
            label="Most new tokens",
            render=False,
        ),
        gr.Checkbox(generation.do_sample, label="Sample, so that each reply differs", render=False),
        gr.Slider(
            0.1, 2, generation.temperature, step=0.05, label="Temperature of samples", render=False
        ),
    ]
    if render:
        with gr.Accordion("Options", open=False):
            for each in made:
                each.render()
    return made


def with_options(
    generation: Generation, max_new_tokens: float, do_sample: bool, temperature: float
) -> Generation:
    """Return the options of generation that a visitor chose. Beams do not sample."""
    return replace(
        generation,
        max_new_tokens=int(max_new_tokens),
        do_sample=do_sample,
        temperature=float(temperature),
        num_beams=1 if do_sample else generation.num_beams,
    )


def listen(
    button: gr.Button,
    inputs: Sequence[Any],
    call: Callable[..., Any],
    outputs: Sequence[Any],
    *,
    submit: Sequence[Any] | None = None,
) -> list[Any]:
    """Call a function when the button is pressed, or Shift and Enter in a text box."""
    triggers = [button.click, *(box.submit for box in submit or inputs)]
    return [
        trigger(call, list(inputs), list(outputs), api_visibility="private") for trigger in triggers
    ]


def check_typed(texts: Sequence[str]) -> None:
    """Show an error if all texts are empty."""
    if not any(text.strip() for text in texts):
        raise gr.Error("Type a text first.", print_exception=False)


def row_of(loaded: LoadedResult, texts: Sequence[str]) -> dict[str, Any]:
    """Return the row of some texts. Show an error if all are empty."""
    check_typed(texts)
    return dict(zip(loaded.recipe.task.interface.columns, texts, strict=True))


def predict_one(loaded: LoadedResult, texts: Sequence[str]) -> dict[str, Any]:
    """Return the prediction for the texts of one row."""
    examples = Examples([row_of(loaded, texts)], "input")
    with shown_errors():
        (prediction,) = predict_examples(loaded, examples)
    return prediction


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show what is wrong with an input on the page."""
    try:
        yield
    except RunError as error:
        raise gr.Error(str(error), print_exception=False) from None


def messages_of(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return turns as the messages of a gr.Chatbot, which reads their texts as HTML."""
    found = []
    for turn in turns:
        found.append({"role": "user", "content": html.escape(turn.message)})
        if turn.reply:
            found.append({"role": "assistant", "content": html.escape(turn.reply)})
    return found
