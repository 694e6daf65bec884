"""Chromium for tests of pages; see scripts/browser.sh."""

import json
import shutil
import subprocess

from helpers.factories import ROOT

FOLDER = ROOT / "tests" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = [
    name
    for name, found in {
        "Chromium": BROWSER,
        "node": shutil.which("node"),
        "tests/browser/node_modules": (FOLDER / "node_modules").is_dir(),
    }.items()
    if not found
]
REASON = f"no {', no '.join(MISSING)}: see scripts/browser.sh"


def run_in_browser(script: str, *words):
    """Return the JSON that a script of tests/browser prints of a page."""
    command = ["node", FOLDER / script, BROWSER, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
