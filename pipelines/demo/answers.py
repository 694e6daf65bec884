"""Predictions as the components of a page show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Spans = list[tuple[str, str | None]]
"""Parts of a text, each with its mark or None."""


def bars(prediction: dict[str, Any], thresholds: Mapping[str, float]) -> dict[str, float]:
    """Return the probability of every label; a label with a threshold names it."""
    return {
        f"{name} (above {thresholds[name]:.0%})" if name in thresholds else name: score
        for name, score in prediction["scores"].items()
    }


def chosen(prediction: dict[str, Any]) -> str:
    """Return the labels that are given, of which there may be none."""
    return ", ".join(prediction["labels"]) or "no label is above its threshold"


def highlighted(context: str, prediction: dict[str, Any]) -> Spans:
    """Return a context with its answer marked, or unmarked if it has none."""
    if not prediction["answer"]:
        return [(context, None)]
    start, end = prediction["start"], prediction["end"]
    parts: Spans = [(context[:start], None), (context[start:end], "answer"), (context[end:], None)]
    return [(text, mark) for text, mark in parts if text]


def answered(prediction: dict[str, Any]) -> str:
    """Return an answer, or that there is none, with its probability."""
    return f"{prediction['answer'] or 'no answer in this context'} ({prediction['score']:.0%})"
