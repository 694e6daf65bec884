"""The model card of a result: what it is, how to load it, what it scored and how it was trained.

The text is in the Jinja2 templates of `templates/`; this module gives them their values.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelines.data.source import DatasetSource
from pipelines.data.splits import describe_part
from pipelines.hub.escaping import code, escape_markdown, literal, one_line
from pipelines.models.quantization import HEADS
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch
from pipelines.results.sidecar import reported_rows_sha256
from pipelines.tasks.base import Task
from pipelines.tasks.spans import CONTRACTION_OR_SYMBOL

UNKNOWN_LICENSE = "other"  # the Hub's id for a licence that is none of its list


def model_card(
    recipe: Recipe, sidecar: dict[str, Any], repo: str, *, base_license: str | None = None
) -> str:
    """Return README.md for the Hub, metadata first.

    `base_license` is the licence of the base, if its card on the Hub has one; that of the recipe
    comes first.
    """
    license_id = recipe.license or base_license or UNKNOWN_LICENSE
    metrics = sidecar["metrics"]
    values: dict[str, Any] = {
        "metadata": Markup(card_metadata(recipe, sidecar, repo, license_id).to_yaml()),
        "name": repo.split("/")[-1],
        "repo": repo,
        "recipe": recipe,
        "task": recipe.task,
        "train": recipe.train,
        "sidecar": sidecar,
        "metrics": metrics,
        "kept": sidecar.get("kept"),
        "other_scores": {
            name: value
            for name, value in metrics.items()
            if isinstance(value, float) and name not in (metrics["primary"], "seconds")
        },
        "dataset_name": dataset_name(recipe),
        "scored_split": scored_split(recipe, sidecar)[1],
        "rows_sha256": reported_rows_sha256(sidecar),
        "widths": recipe.model.widths if isinstance(recipe.model, Scratch) else None,
        "quantization": type(recipe.quantization).__name__,
        "classes": imported_classes(recipe),
        "heads": HEADS,
        "contraction_or_symbol": CONTRACTION_OR_SYMBOL,
    }
    return environment().select_template(template_names(recipe.task)).render(values)


@cache
def environment() -> Environment:
    """Return the environment of the templates, where every value is escaped by default."""
    found = Environment(
        loader=PackageLoader("pipelines.hub"),
        autoescape=True,
        finalize=escape_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"code": code, "literal": literal}
    return found


def template_names(task: Task) -> list[str]:
    """Return the templates that fit a task, best first: of its class, of its tag, of any task."""
    classes = [each.__name__ for each in type(task).__mro__ if issubclass(each, Task)]
    return [f"{name}.md.jinja" for name in (*classes, task.pipeline_tag, "card")]


def imported_classes(recipe: Recipe) -> list[str]:
    """Return the names that a card's snippet without this project imports from transformers."""
    quantization = ["BitsAndBytesConfig"] if recipe.quantization else []
    return sorted([recipe.task.auto_class, "AutoTokenizer", *quantization])


def card_metadata(
    recipe: Recipe, sidecar: dict[str, Any], repo: str, license_id: str
) -> ModelCardData:
    """Return what the Hub reads of a card."""
    source, metrics, task = recipe.task.dataset, sidecar["metrics"], recipe.task
    is_local = source.path.startswith("./")
    primary = metrics["primary"]
    result = EvalResult(
        task_type=task.pipeline_tag,
        dataset_name=one_line(dataset_name(recipe)),
        dataset_type=re.sub(r"[^\w.-]+", "-", Path(source.path).name) if is_local else source.path,
        dataset_config=source.name or None,
        dataset_split=scored_split(recipe, sidecar)[0],
        dataset_revision=None if is_local else source.revision or None,
        metric_type=primary,
        metric_name=primary,
        metric_value=metrics[primary],
    )
    base = relation = None
    if isinstance(recipe.model, Model) and not recipe.model.name_or_path.startswith("./"):
        base, relation = recipe.model.name_or_path, "adapter" if recipe.lora else "finetune"
    return ModelCardData(
        base_model=base,
        base_model_relation=relation,
        license=license_id,
        library_name="peft" if recipe.lora else "transformers",
        pipeline_tag=task.pipeline_tag,
        tags=["gpt2-recipes", *(["lora"] if recipe.lora else [])],
        datasets=hub_datasets(source) or None,
        metrics=[primary],
        model_name=repo.split("/")[-1],
        eval_results=[result],
    )


def hub_datasets(source: DatasetSource) -> list[str]:
    """Return the datasets of the Hub that the rows came from."""
    paths = [source.path, *(each.path for each in source.mixed_with or ())]
    return [path for path in paths if not path.startswith("./")]


def dataset_name(recipe: Recipe) -> str:
    """Return the name of a dataset with its configuration."""
    source = recipe.task.dataset
    return f"{source.path} ({source.name})" if source.name else source.path


def scored_split(recipe: Recipe, sidecar: dict[str, Any]) -> tuple[str, str]:
    """Return the split that a result was scored on, and its description."""
    source = recipe.task.dataset
    part = f"{source.eval_fraction:.0%} of the rows" if source.eval_split is None else "all"
    recorded = {"split": source.eval_split or source.train_split, "part": part}
    splits = sidecar["dataset"].get("splits", {})
    recorded |= splits.get(splits.get("reported", "eval"), {})
    return recorded["split"], describe_part(recorded)
