"""Convert frozen values to JSON and back, and check them. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Union

from annotated_types import Ge, Gt, Le, Lt
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from pipelines.errors import Problem, RecipeError
from pipelines.tasks import TASKS
from pipelines.tasks.base import Task


def to_json_value(value: Any) -> Any:
    """Return dataclasses as dictionaries that name their type."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    return list(map(to_json_value, value)) if isinstance(value, tuple) else value


def suggest(name: str, known: list[str]) -> str:
    """Return a hint that names the closest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}."


def shortened(text: str) -> str:
    """Return the start and the end of a message that may quote a value of any length."""
    return text if len(text) <= 300 else f"{text[:200]} … {text[-80:]}"


def union_members(hint: Any) -> list[Any]:
    """Return the members of a union, or the type itself, without Annotated."""
    if typing.get_origin(hint) is Annotated:
        return union_members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [choice for member in typing.get_args(hint) for choice in union_members(member)]
    if hint is Task:
        return list(TASKS.values())
    return [hint]


def is_section(hint: Any) -> bool:
    """Tell a dataclass from a plain type."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def section_of_items(hint: Any) -> type[Any] | None:
    """Return the dataclass that the items of a tuple are of, or None for another type."""
    items = (typing.get_args(c)[0] for c in union_members(hint) if typing.get_origin(c) is tuple)
    return next(filter(is_section, items), None)


def from_json_value(hint: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    """Build a value of type `hint` from JSON; append what is wrong to `problems`."""
    item = section_of_items(hint)
    if item is not None and isinstance(value, list):
        return tuple(
            from_json_value(item, each, f"{path}.{index}", problems)
            for index, each in enumerate(value)
        )
    sections = {c.__name__: c for c in union_members(hint) if is_section(c)}
    if not sections or (value is None and type(None) in union_members(hint)):
        leaf = tuple(value) if isinstance(value, list) else value
        problems.extend(wrong_value(leaf, hint, path))
        return leaf
    if not isinstance(value, dict):
        text = f"{shortened(repr(value))} is not an object."
        problems.append(Problem(path or "recipe.json", text))
        return None
    name = value.get("type")
    if not isinstance(name, str) or name not in sections:
        text = f"{shortened(repr(name))}: {suggest(str(name), list(sections))}"
        problems.append(Problem(f"{path}.type".lstrip("."), text))
        return None
    return section_from_json(sections[name], value, path, problems)


def section_from_json(
    section: type[Any], value: dict[str, Any], path: str, problems: list[Problem]
) -> Any:
    """Build a dataclass from a JSON object; return None if anything in it is wrong."""
    hints = typing.get_type_hints(section, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(section)}
    num_before = len(problems)
    arguments = {}
    for key, item in value.items():
        field_path = f"{path}.{key}".lstrip(".")
        if key in fields:
            arguments[key] = from_json_value(hints[key], item, field_path, problems)
        elif key != "type":
            problems.append(Problem(field_path, f"unknown; {suggest(key, list(fields))}"))
    for name, each in fields.items():
        optional = each.default is not dataclasses.MISSING
        optional = optional or each.default_factory is not dataclasses.MISSING
        if name not in arguments and not optional:
            problems.append(Problem(f"{path}.{name}".lstrip("."), "is missing."))
    if len(problems) > num_before:
        return None
    try:
        return section(**arguments)
    except RecipeError as error:
        problems += error.problems
        return None


def wrong_values(value: Any, path: str) -> Iterator[Problem]:
    """Yield every field of wrong type or out of range."""
    hints = typing.get_type_hints(type(value), include_extras=True)
    for each in dataclasses.fields(value):
        field_path, item = f"{path}.{each.name}".lstrip("."), getattr(value, each.name)
        hint = hints[each.name]
        if dataclasses.is_dataclass(item) and isinstance(
            item, tuple(c for c in union_members(hint) if isinstance(c, type))
        ):
            yield from wrong_values(item, field_path)
            continue
        problems = list(wrong_value(item, hint, field_path))
        if not problems and item is not None and section_of_items(hint):
            for index, part in enumerate(item):
                problems += wrong_values(part, f"{field_path}.{index}")
        yield from problems


def wrong_value(item: Any, hint: Any, path: str) -> Iterator[Problem]:
    """Yield problems for a value of wrong type or out of bounds."""
    try:
        check_type(item, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        # True is an int, for Python
        fits = not isinstance(item, bool) or bool in union_members(hint)
    except TypeCheckError:
        fits = False
    if not fits:
        text = f"{shortened(repr(item))} is not allowed; {allowed_values(hint, item)}"
        yield Problem(path, text)
        return
    if item is None or isinstance(item, (str, bool, tuple)):
        return
    for bound in bounds_of(hint):
        if not is_within(item, bound):
            text = f"{shortened(repr(item))} is out of range; it must be {bound_in_words(bound)}."
            yield Problem(path, text)


def allowed_values(hint: Any, item: Any) -> str:
    """Return a sentence with the values or types that a field takes."""
    members = union_members(hint)
    items = [c for c in members if typing.get_origin(c) is tuple]
    kinds = [*members, *(typing.get_args(c)[0] for c in items)]
    literals = [a for c in kinds for a in typing.get_args(c) if isinstance(a, str)]
    if isinstance(item, tuple):
        item = next((each for each in item if each not in literals), item)
    if literals:
        others = [str(c) for c in members if typing.get_origin(c) is dict]
        allowed = ", or ".join([", ".join(literals), *others])
        return f"{suggest(str(item), literals)} Allowed: {allowed}."
    names = [getattr(c, "__name__", str(c)) for c in members]
    return f"it takes {' or '.join(names)}."


def bounds_of(hint: Any) -> list[Any]:
    """Return the bounds in an annotation, inside unions too."""
    if typing.get_origin(hint) is Annotated:
        return list(hint.__metadata__)
    return [bound for member in typing.get_args(hint) for bound in bounds_of(member)]


def is_within(item: Any, bound: Any) -> bool:
    """Compare a number with one bound; NaN is within none."""
    match bound:
        case Ge(ge=value):
            return bool(item >= value)
        case Gt(gt=value):
            return bool(item > value)
        case Le(le=value):
            return bool(item <= value)
        case Lt(lt=value):
            return bool(item < value)
    raise AssertionError(bound)


def bound_in_words(bound: Any) -> str:
    """Return a bound as a phrase, such as "at least 1"."""
    match bound:
        case Ge(ge=value):
            return f"at least {value}"
        case Gt(gt=value):
            return f"above {value}"
        case Le(le=value):
            return f"at most {value}"
        case Lt(lt=value):
            return f"below {value}"
    raise AssertionError(bound)
