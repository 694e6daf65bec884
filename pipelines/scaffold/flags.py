"""The flags of `gpt2-recipes new`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipelines.recipe.names import Method

TaskName = Literal["pretrain", "classify", "answer", "instruct", "prefer"]


@dataclass(frozen=True, kw_only=True)
class NewFlags:
    """What is given; the rest is guessed."""

    data: str | None = None
    """File, folder or Hub id of the rows."""
    data_name: str | None = None
    """Configuration of a Hub dataset, such as sst2 of nyu-mll/glue."""
    task: TaskName | None = None
    """What to learn; by default what the columns fit."""
    model: str | None = None
    """Folder or Hub id of the model to start from, or scratch:SIZE; openai-community/gpt2."""
    method: Method | None = None
    """What to train: all weights, or an adapter on the base, in 8 or 4 bits if so named; lora."""
    text_column: str | None = None
    """Column to read: the text, the prompt, the context."""
    text_pair_column: str | None = None
    """Column of the second text of a pair to classify."""
    label_column: str | None = None
    """Column to learn: the label, the reply, the answers."""
    out: Path | None = None
    """File to write; by default NAME.py."""
    source: Annotated[str | None, tyro.conf.arg(name="from", metavar="RECIPE")] = None
    """Recipe to copy, with --data and --model in place of its own if they are given."""
    overwrite: bool = False
    """Replace a file that exists."""
