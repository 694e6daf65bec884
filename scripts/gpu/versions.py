"""Tell what is installed and from where, and what is missing or too old; then the exit code is 1.

    python scripts/gpu/versions.py

The packages of the kit are compared with their own requirements, too.
"""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = (
    *("accelerate", "aiohttp", "bitsandbytes", "datasets", "evaluate", "huggingface_hub", "nltk"),
    *("matplotlib", "peft", "pyarrow", "rouge_score", "sacrebleu", "sklearn", "tokenizers"),
    *("transformers", "trl", "tyro"),
)


def problem_with(requirement: Requirement) -> str | None:
    """Return what is wrong with an installed package; None if nothing is."""
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return None
    try:
        found = distribution(requirement.name)
    except PackageNotFoundError:
        return f"{requirement} is missing"
    fits = requirement.specifier.contains(found.version, prereleases=True)
    return None if fits else f"{requirement} is required, {found.version} is installed"


def check_packages() -> Iterator[str]:
    """Print the project's requirements as installed; yield what is wrong with them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in project["dependencies"]:
        requirement = Requirement(text)
        if problem := problem_with(requirement):
            yield problem
        else:
            found = distribution(requirement.name)
            print(f"{requirement.name:18} {found.version:14} {found.locate_file('')}")
    kit = os.environ.get("KIT_SITE")
    for each in distributions() if kit else ():
        if Path(str(each.locate_file(""))).resolve() == Path(kit).resolve():
            problems = map(problem_with, map(Requirement, each.requires or ()))
            yield from (f"{each.name}: {problem}" for problem in problems if problem)


def check_imports() -> Iterator[str]:
    """Import what a run imports; yield what fails. A kit's packages may not fit the image's."""
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # all of them are told
            yield f"import {name}: {type(error).__name__}: {error}"


def print_device() -> None:
    """Print torch's version and its GPU."""
    import torch

    print("torch", torch.__version__, "CUDA", torch.version.cuda, "Python", sys.version.split()[0])
    if torch.cuda.is_available():
        print(torch.cuda.get_device_properties(0))


def main() -> None:
    """Print everything; exit with 1 if something is wrong."""
    problems = [*check_packages(), *check_imports()]
    print_device()
    for problem in problems:
        print("PROBLEM", problem)
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
