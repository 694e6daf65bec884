"""The Python packages of the kit: their pins, and their files without what no run reads.

    python scripts/gpu/pack.py list --python 3.12 [--with PACKAGE ...]
    python scripts/gpu/pack.py unpack WHEELS SITE --cuda 130

The list follows the requirements of what is installed here, from the project's own on.
"""

from __future__ import annotations

import argparse
import re
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
IMAGE = {
    *("torch", "triton", "numpy", "scipy", "pandas"),
    *("pyarrow", "scikit-learn", "matplotlib", "pillow", "setuptools"),
}
"""Large packages that an image with torch has; `scripts/gpu/versions.py` tells of older ones."""
TESTS = ("pytest", "pytest-timeout")
NOT_READ = {".pyi", ".c", ".h", ".pyx", ".rst"}
"""Suffixes of files that are left out."""


def canonical(name: str) -> str:
    """Return a package's name in the form by which names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(python: str, also: list[str]) -> set[str]:
    """Return the names of what the project needs, but for IMAGE and what only that needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "extra": "",
    }
    extra = project["optional-dependencies"]["gpu"]
    waiting = [Requirement(text).name for text in (*project["dependencies"], *extra, *TESTS, *also)]
    found: set[str] = set()
    while waiting:
        name = canonical(waiting.pop())
        if name in found or (name in IMAGE and name not in also):
            continue
        found.add(name)
        for text in requirements_of(name):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                waiting.append(requirement.name)
    return found


def requirements_of(name: str) -> list[str]:
    """Return the requirements of an installed package; none of one for GPUs only."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def pins(names: set[str]) -> list[str]:
    """Return the names with the tested versions. An extra that nothing pins has its own bounds."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "==" in line and not line.startswith("#")]
    known = {canonical(line.split("==")[0]): line.split(";")[0].strip() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in project["optional-dependencies"]["gpu"]:
        known.setdefault(canonical(Requirement(extra).name), extra)
    missing = sorted(names - known.keys())
    if missing:
        raise SystemExit(f"constraints.txt has no pin of: {', '.join(missing)}")
    return sorted(known[name] for name in names)


def is_read(wheel: str, path: PurePosixPath, cuda: str) -> bool:
    """Tell whether a run may read a file of a wheel."""
    if path.suffix in NOT_READ or {"tests", "test"} & set(path.parts[1:2]):
        return False
    if wheel.startswith("bitsandbytes") and path.suffix == ".so":
        return path.name in ("libbitsandbytes_cpu.so", f"libbitsandbytes_cuda{cuda}.so")
    return not (wheel.startswith("nltk") and path.parts[1:2] in (("app",), ("draw",)))


def place_of(name: str) -> str | None:
    """Return where a file of a wheel belongs in site-packages; None for scripts and headers."""
    before, data, rest = name.partition(".data/")
    kind, _, inside = rest.partition("/")
    if not data or "/" in before:
        return name
    return inside if kind in ("purelib", "platlib") else None


def unpack(wheels: Path, site: Path, cuda: str) -> None:
    """Unpack wheels into a folder for PYTHONPATH."""
    num_bytes = 0
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                place = place_of(name)
                if name.endswith("/") or place is None:
                    continue
                if is_read(wheel.name, PurePosixPath(place), cuda):
                    content = archive.read(name)
                    (site / place).parent.mkdir(parents=True, exist_ok=True)
                    (site / place).write_bytes(content)
                    num_bytes += len(content)
    if not any(site.glob(f"bitsandbytes/libbitsandbytes_cuda{cuda}.so")):
        raise SystemExit(f"bitsandbytes has no library for CUDA {cuda}: give another --cuda")
    print(f"{num_bytes / 1e6:,.0f} MB unpacked")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("list")
    listed.add_argument("--python", default="3.12")
    listed.add_argument("--with", dest="also", action="append", default=[])
    unpacked = commands.add_parser("unpack")
    unpacked.add_argument("wheels", type=Path)
    unpacked.add_argument("site", type=Path)
    unpacked.add_argument("--cuda", default="130")
    options = parser.parse_args()
    if options.command == "list":
        print("\n".join(pins(closure(options.python, [canonical(each) for each in options.also]))))
    else:
        unpack(options.wheels, options.site, options.cuda)


if __name__ == "__main__":
    main()
