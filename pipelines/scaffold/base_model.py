"""What is known here of the model that a recipe starts from: its size and its tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.paths import nearest_path
from pipelines.recipe.names import is_hub_id
from pipelines.recipe.values import SIZES, Model, Scratch, Tokenizer

Counter = Callable[[Sequence[str]], list[int]]
"""Returns the number of tokens of each text."""
GPT2_WIDTHS = {"gpt2": 768, "distilgpt2": 768, "gpt2-medium": 1024, "gpt2-large": 1280}
GPT2_WIDTHS |= {"gpt2-xl": 1600}
GPT2_POSITIONS = 1024
SCRATCH_POSITIONS = {"tiny": 256, "mini": 256}
PIECE = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+|_+")
"""GPT-2's rule to split a text before BPE, but for contractions."""


@dataclass(frozen=True)
class BaseModel:
    """A model to start from; `why` tells where its size is known from."""

    model: Model | Scratch
    positions: int
    width: int
    why: str
    count_tokens: Counter
    counted: str
    """How tokens are counted, in a phrase."""


def base_model(name: str) -> BaseModel:
    """Return what is known of a folder, a Hub id or scratch:SIZE.

    Raise RecipeError for any other name, and for a folder without a model.
    """
    kind, _, size = name.partition(":")
    if kind == "scratch":
        return random_weights(size or "small")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return local_checkpoint(name, folder)
    if "/" in name and not is_hub_id(name):
        raise no_model(name)
    return hub_checkpoint(f"openai-community/{name}" if name in GPT2_WIDTHS else name)


def no_model(name: str) -> RecipeError:
    """Return the error for a name of nothing, with the nearest path."""
    nearest = nearest_path(Path(name))
    hint = f"Did you mean {nearest}?" if nearest else "Name a folder, USER/NAME or scratch:SIZE."
    return RecipeError([Problem("model", f"{name}: neither a folder nor a Hub id. {hint}")])


def random_weights(size: str) -> BaseModel:
    """Return a GPT-2 of a size with random weights, and a tokenizer that the run trains."""
    if size not in SIZES:
        close = get_close_matches(size, SIZES, n=1)
        hint = f"Did you mean scratch:{close[0]}? " if close else ""
        raise RecipeError([Problem("model", f"scratch:{size}: {hint}Sizes: {', '.join(SIZES)}.")])
    layers, _, width = SIZES[size]
    positions = SCRATCH_POSITIONS.get(size, GPT2_POSITIONS)
    model = Scratch(size=size, n_positions=positions, tokenizer=Tokenizer())  # type: ignore[arg-type]
    why = f"random weights, {layers} layers of width {width}, and a tokenizer of its own"
    return BaseModel(model, positions, width, why, estimate_tokens, "estimated by GPT-2's rule")


def local_checkpoint(name: str, folder: Path) -> BaseModel:
    """Return a checkpoint in a folder. Raise RecipeError for an adapter, and for no config."""
    if (folder / "adapter_config.json").is_file():
        text = f"{name} is an adapter. Merge it first: gpt2-recipes merge {name} OUT"
        raise RecipeError([Problem("model", text)])
    config = read_json(folder / "config.json")
    if config is None:
        raise RecipeError([Problem("model", f"{name} has no config.json, so it is no model.")])
    return from_config(
        Model(name_or_path=name), config, folder / "tokenizer.json", "its config.json"
    )


def hub_checkpoint(name: str) -> BaseModel:
    """Return a checkpoint of the Hub, by the files in the cache, or by GPT-2's sizes."""
    if not is_hub_id(name):
        raise no_model(name)
    model = Model(name_or_path=name)
    config = read_json(cached(name, "config.json"))
    if config is not None:
        return from_config(
            model, config, cached(name, "tokenizer.json"), "config.json in the cache"
        )
    width = GPT2_WIDTHS.get(name.rpartition("/")[2])
    why = f"{GPT2_POSITIONS:,} positions, as GPT-2 has"
    why += "" if width else "; its config.json is not on this machine"
    return BaseModel(
        model, GPT2_POSITIONS, width or 768, why, estimate_tokens, "estimated by GPT-2's rule"
    )


def cached(name: str, file: str) -> Path:
    """Return the path of a Hub file in the cache, which may not be there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else Path(name) / file


def from_config(model: Model, config: dict[str, Any], tokenizer: Path, source: str) -> BaseModel:
    """Return a checkpoint with the sizes of its config.json, and its tokenizer if it is there."""
    positions = config.get("n_positions") or config.get("max_position_embeddings")
    width = config.get("n_embd") or config.get("hidden_size")
    why = f"{positions or GPT2_POSITIONS:,} positions, by {source}"
    count: Counter = estimate_tokens
    counted = "estimated by GPT-2's rule"
    if tokenizer.is_file():
        count, counted = exact_counter(tokenizer), "counted by its tokenizer"
    return BaseModel(
        model, int(positions or GPT2_POSITIONS), int(width or 768), why, count, counted
    )


def read_json(file: Path) -> dict[str, Any] | None:
    """Return the object in a file, or None if there is none. Raise RecipeError for no object."""
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RecipeError([Problem("model", f"{file} is not a JSON object: {error}")]) from None


def exact_counter(file: Path) -> Counter:
    """Return a counter of the tokens of a tokenizer.json."""
    from tokenizers import Tokenizer as FastTokenizer

    tokenizer = FastTokenizer.from_file(str(file))
    tokenizer.no_truncation()
    return lambda texts: [
        len(each.ids) for each in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]


def estimate_tokens(texts: Sequence[str]) -> list[int]:
    """Return about as many tokens for each text as GPT-2's tokenizer makes.

    A short word of ASCII letters is one token; longer ones have a token for every 5 letters, and
    other scripts one for every 2 bytes.
    """
    return [sum(map(_piece_tokens, PIECE.findall(text))) for text in texts]


def _piece_tokens(piece: str) -> int:
    word = piece.strip() or " "
    if not word.isascii():
        return max(1, round(len(word.encode()) / 2))
    if word.isdigit():
        return -(-len(word) // 3)
    return 1 if len(word) <= 7 else -(-len(word) // 5)
