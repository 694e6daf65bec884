"""Read the metadata of model cards, and check it as the Hub does."""

from __future__ import annotations

import re
from typing import Any

import yaml

CARD_BYTES = 100 * 1024  # of a card's metadata
SPACE_COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SPACE_CHOICES = {
    "sdk": ("gradio", "docker", "static"),
    "colorFrom": SPACE_COLOURS,
    "colorTo": SPACE_COLOURS,
}
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def card_metadata(content: bytes) -> dict[str, Any]:
    """Return the metadata of a README.md. Raise ValueError that says what is wrong with it."""
    match = re.match(r"---\n(.*?)\n---\s*(\n|$)", content.decode(), re.DOTALL)
    if not match:
        return {}
    if len(match[1]) > CARD_BYTES:
        raise ValueError(f"metadata is longer than {CARD_BYTES} bytes")
    try:
        data = _load_without_aliases(match[1]) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"YAML: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("metadata is not a mapping")
    return data


def card_errors(content: bytes, kind: str) -> list[str]:
    """Return what the Hub would refuse in the metadata of a README.md, by the kind of repository.

    `kind` is models, datasets or spaces.
    """
    try:
        data = card_metadata(content)
        errors = _errors_of_ids(data)
        if kind == "spaces":
            errors += _errors_of_space(data)
        if not all(isinstance(tag, str) for tag in _items(data.get("tags"), "tags")):
            errors.append('"tags" must be an array of strings')
        return errors + _errors_of_scores(data)
    except (ValueError, AttributeError, TypeError) as error:  # of a value that is no mapping
        return [str(error)]


def _load_without_aliases(text: str) -> Any:
    """Load YAML. Raise YAMLError for aliases, which can grow by powers when written as JSON."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise yaml.YAMLError("aliases are not allowed")
    return yaml.safe_load(text)


def _items(value: Any, name: str) -> list[Any]:
    """Return an array, or [] if there is none. Raise ValueError for another type."""
    if value is not None and not isinstance(value, list):
        raise ValueError(f'"{name}" must be an array')
    return value or []


def _errors_of_ids(data: dict[str, Any]) -> list[str]:
    """Return the fields that must name repositories and do not."""
    errors = []
    for key in ("base_model", "datasets", "models"):
        values = data.get(key)
        for value in [values] if isinstance(values, str) else _items(values, key):
            if not isinstance(value, str) or not REPO_ID.fullmatch(value):
                errors.append(f'"{key}" {value!r} is not a repository id')
    return errors


def _errors_of_space(data: dict[str, Any]) -> list[str]:
    """Return what is wrong with the settings of a Space."""
    errors = [
        f'"{key}" must be one of {", ".join(allowed)}'
        for key, allowed in SPACE_CHOICES.items()
        if data.get(key, allowed[0]) not in allowed
    ]
    errors += [
        f'"{key}" must be a string'
        for key in ("title", "emoji", "sdk_version", "python_version", "app_file")
        if not isinstance(data.get(key, ""), str)
    ]
    return errors if "sdk" in data else [*errors, '"sdk" is required']


def _errors_of_scores(data: dict[str, Any]) -> list[str]:
    """Return what is missing in the scores of a card."""
    errors = []
    for entry in _items(data.get("model-index"), "model-index"):
        for result in _items(entry.get("results"), "results") or [{}]:
            dataset, task = result.get("dataset") or {}, result.get("task") or {}
            if not (task.get("type") and dataset.get("type") and dataset.get("name")):
                errors.append('"model-index" needs task.type, dataset.type and dataset.name')
            for metric in _items(result.get("metrics"), "metrics") or [{}]:
                if "type" not in metric or "value" not in metric:
                    errors.append('"model-index" metrics need type and value')
    return errors
