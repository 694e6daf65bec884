"""Settings of the whole process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence what the libraries say of every model inside: false alarms and progress bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    bars_of_datasets = not datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if bars_of_datasets:
        datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for start in (
                "fan_in_fan_out is set to False but",
                "`is_gradient_checkpointing` is deprecated",
                "`label_smoothing_factor` is deprecated",
            ):
                warnings.filterwarnings("ignore", message=start)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if bars_of_datasets:
            datasets.enable_progress_bars()
