"""Commands that are run against the Hub of a test, as processes of their own."""

import os
import subprocess
import sys

from helpers.factories import ROOT

SECRET = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"  # the token of the user "local"


def environment(hub, home, token=SECRET) -> dict[str, str]:
    """Return the environment of a client with an empty cache."""
    kept = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    found = kept | {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "GPT2_RECIPES_HUB_TIMEOUT": "10",  # a Hub on loopback answers soon, or not at all
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    return found | ({"HF_TOKEN": token} if token else {})


def client(hub, home, *arguments, cwd, python=sys.executable, token=SECRET, code=0):
    """Run a command against the Hub; return what it printed.

    `python` may be that of a CommandServer with the environment of this Hub and home.
    """
    done = subprocess.run(
        [python, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(hub, home, token),
        cwd=cwd,
        timeout=280,
    )
    assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-3000:])
    return done.stdout + done.stderr
