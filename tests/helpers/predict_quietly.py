"""Predict with a result in 8 bits, and check that the libraries' settings stay as they were.

python predict_quietly.py FOLDER
"""

import sys
import warnings

import datasets
from transformers.utils import logging

from pipelines import load


def settings():
    """Return what of the libraries a program may have set."""
    return (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
        list(warnings.filters),
    )


if __name__ == "__main__":
    before = settings()
    loaded = load(sys.argv[1], precision="8bit")
    print(loaded.predict("a lamp")[0]["label"])
    assert settings() == before
