"""The log of a run: its messages, and the traceback of what ended it. Imports no torch."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import Problem, RecipeError

FILE = "run.log"
LOG = logging.getLogger("pipelines.run")
TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")  # a token of the Hub; those of today have 34 characters
SECRETS = (
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "TRACKIO_WRITE_TOKEN",
)
"""Environment variables with secrets of experiment trackers."""
PASSWORD = re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+@")  # in an address, with the user's name


def scrubbed(text: str) -> str:
    """Return a text without tokens of the Hub ("hf_***"), and without secrets of trackers."""
    current = os.environ.get("HF_TOKEN")
    if current:
        text = text.replace(current, "hf_***")
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return PASSWORD.sub("***@", TOKEN.sub("hf_***", text))


class ScrubbingFormatter(logging.Formatter):
    """Replaces tokens in every line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


class LogFile(logging.FileHandler):
    """Appends to a file and ignores a full disk, which is reported where it ends the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        return

    def close(self) -> None:
        """Close the file. Flushing its buffer may fail on a full disk, which is ignored too."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to_folder(folder: Path) -> Iterator[None]:
    """Append the messages printed inside to the folder's run.log, and the traceback of an error.

    Raise RecipeError if the file cannot be opened.
    """
    try:
        handler = LogFile(folder / FILE, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        text = f"{folder / FILE} cannot be written: {error.strerror}."
        raise RecipeError([Problem("output_dir", text)]) from None
    handler.setFormatter(ScrubbingFormatter("%(asctime)s %(message)s"))
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    LOG.addHandler(handler)
    try:
        yield
    except BaseException as error:
        LOG.exception("The run ended.")
        error.add_note(f"The whole trace is in {folder / FILE}.")
        raise
    finally:
        LOG.removeHandler(handler)
        handler.close()


def quiet_torch_sockets() -> None:
    """Silence torch's warnings, with stacks of C++, of connections that other ranks have closed.

    No effect after torch is imported. A level in the environment has precedence.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def quiet_bitsandbytes() -> None:
    """Silence bitsandbytes' warnings, unless the program has set a level.

    It warns of kernels that are not installed, at import, and of the rounding that it is there for,
    at each 8-bit layer.
    """
    logger = logging.getLogger("bitsandbytes")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
