"""README.md of an exported folder, from templates of hub/templates."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCardData
from markupsafe import Markup

from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.hub.card import environment, template_names
from pipelines.hub.load import LoadedResult
from pipelines.tasks.spans import CONTRACTION_OR_SYMBOL

TEXT = "Good morning"
"""What examples are written after, or reply to."""


def export_card(loaded: LoadedResult, record: dict[str, Any], *, license_id: str | None) -> str:
    """Return README.md of an exported folder: how to use the file, and what it was made from.

    `record` is what export.json has.
    """
    task, to = loaded.recipe.task, record["format"]
    metadata = ModelCardData(
        license=license_id,
        base_model=record["base"],
        base_model_relation="quantized" if record["base"] else None,
        library_name=to,
        pipeline_tag=task.pipeline_tag,
        tags=["gpt2-recipes", to],
    )
    values = {
        "metadata": Markup(metadata.to_yaml()),
        "name": loaded.recipe.name,
        "task": task,
        "record": record,
        "metrics": loaded.metrics,
        "thresholds": getattr(task, "thresholds", None),
        "contraction_or_symbol": CONTRACTION_OR_SYMBOL,
        "text": TEXT,
    }
    names = [f"{to}/{each}" for each in template_names(task)]
    return environment().select_template(names).render(values)


def example_prompt(loaded: LoadedResult) -> str | None:
    """Return a prompt as a language model of the task reads it; None for other tasks."""
    task, tokenizer = loaded.recipe.task, loaded.tokenizer
    if task.head is not None:
        return None
    try:
        row = task.row(TEXT)
    except DataError:  # a prompt has several columns
        row = dict.fromkeys((column for _, column in task.columns()), TEXT)
    (ids,) = task.prompts(Examples([row], "example"), tokenizer)
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
