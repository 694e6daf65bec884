"""Installed versions against what the project declares and what it was tested with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipelines.doctor.finding import Finding
from pipelines.shipped import constraints

SHOWN = ("torch", "transformers", "accelerate", "peft", "trl", "bitsandbytes", "datasets")


def libraries() -> Finding:
    """Compare every dependency with its range in the package's metadata, and with its pin."""
    needed = [Requirement(line) for line in requires("gpt2-recipes") or ()]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    found = {each.name: installed(each.name) for each in needed}
    wrong = [problem(each, found[each.name]) for each in needed]
    wrong = [text for text in wrong if text]
    if wrong:
        fix = "Install again: pip install -c constraints.txt -e . (or the wheel)."
        return Finding("libraries", "; ".join(wrong), "problem", fix)
    others = list(untested(found))
    if others:
        fix = "Not an error. Install with -c constraints.txt to have the tested set."
        return Finding("libraries", f"not tested: {', '.join(others)}", "caution", fix)
    shown = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
    return Finding("libraries", f"{len(found)} as tested: {shown}, …")


def installed(name: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def problem(requirement: Requirement, found: str | None) -> str:
    """Return why a version does not satisfy a requirement, or ""."""
    if found is None:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{requirement.name} {found} is not {requirement.specifier}"


def untested(found: dict[str, str | None]) -> list[str]:
    """Return the packages whose version is not the pinned one, builds such as +cpu aside."""
    pins = {canonicalize_name(name): pin for name, pin in constraints().items()}
    return [
        f"{name} {text} ({pins[key]} was)"
        for name, text in found.items()
        if text and (key := canonicalize_name(name)) in pins and Version(text).public != pins[key]
    ]
