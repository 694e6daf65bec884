"""`gpt2-recipes doctor`: every check, in under five seconds, and the exit code."""

from __future__ import annotations

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.doctor.account import hub
from pipelines.doctor.finding import Finding
from pipelines.doctor.launch import launch
from pipelines.doctor.libraries import libraries
from pipelines.doctor.machine import check_machine, disks, python
from pipelines.doctor.screen import print_screen, to_json


def doctor(config_file: Path | None, *, as_json: bool) -> bool:
    """Print what this machine can do, and return whether a run can start on it."""
    findings = examine(config_file)
    report = to_json(findings)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print_screen(findings)
    return bool(report["can_start"])


def examine(config_file: Path | None) -> list[Finding]:
    """Return all findings. The Hub is asked while torch is imported, which takes seconds."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        asked = pool.submit(hub)
        found = [python(), *with_torch(config_file)]
        return [*found, libraries(), *disks(), asked.result()]


def with_torch(config_file: Path | None) -> list[Finding]:
    """Return the findings that torch is needed for, or that it cannot be imported."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        text = f"torch cannot be imported: {error}"
        fix = "Install again: pip install -c constraints.txt -e ."
        return [Finding("torch", text, "problem", fix)]
    return [*check_machine(torch), launch(torch, config_file)]
