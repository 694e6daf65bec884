"""Refuse checkpoints and tokenizers that the libraries would load as something else.

transformers fills tensors that a checkpoint lacks with random numbers, drops those that it does
not know, and makes a tokenizer without vocabulary where the files of one are missing. It says so
at most in a warning. Here each is an error that names what is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from pipelines.errors import Problem, RecipeError
from pipelines.hub_client import HubError, fetch_checkpoint, reason
from pipelines.recipe import Model, Recipe
from pipelines.tasks import Task
from pipelines.tasks.base import DataError, Examples, Features, token_ids

LISTED = 3  # tensors that a message names
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
STALE_BUFFERS = re.compile(r"(^|\.)(attn|attention)\.(masked_)?bias$|inv_freq$|position_ids$")
"""Buffers that older checkpoints hold and that models now compute: no weights."""
SAMPLED_TEXTS = 200
SAMPLED_CHARACTERS = 1000
"""Of each sampled text."""
MOST_LOST = 0.8
"""Fraction of lost characters above which a tokenizer is refused."""
WORTH_A_CAUTION = 0.01
NUM_TRIED = 8  # tokens of a forward pass that tries a model


# Checkpoints


def check_recipe_model(recipe: Recipe) -> None:
    """Raise RecipeError, before any data is read, for a base that cannot be trained."""
    if isinstance(recipe.model, Model):
        read_config(recipe.model, recipe.task, "model.name_or_path")


def fetched(model: Model, *, path: str, weights: bool = True) -> None:
    """Bring a checkpoint of the Hub into the cache, with further attempts when the Hub fails."""
    try:
        fetch_checkpoint(model, weights=weights)
    except (HubError, OSError) as error:
        text = f"{model.name_or_path!r} cannot be downloaded: {reason(error)}"
        raise RecipeError([Problem(path, text)]) from error


def read_config(model: Model, task: Task | None, path: str) -> Any:
    """Return a checkpoint's config.

    Raise RecipeError, which names `path`, unless transformers itself has the model, with the head
    of `task`, and its weights are safetensors.
    """
    name = model.name_or_path

    def refused(message: str) -> RecipeError:
        return RecipeError([Problem(path, message)])

    check_adapter_folder(model, path)
    fetched(model, path=path, weights=False)
    try:
        config = AutoConfig.from_pretrained(name, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            message = "needs Python code of its own (auto_map), which is never run here."
            raise refused(f"{name!r} {message} Use a family that transformers has.") from error
        missing = Path(name).is_dir() and not (Path(name) / "config.json").exists()
        message = missing_config(Path(name)) if missing else " ".join(str(error).split())
        raise refused(f"{name!r} cannot be loaded: {message}") from error
    if task is not None:
        if type(config) not in getattr(transformers, task.auto_class)._model_mapping:
            raise refused(
                f"{name!r} cannot be loaded for {type(task).__name__}: transformers has no "
                f"{task.auto_class} of the family {config.model_type!r}. Use another family, such "
                "as gpt2, llama or qwen2."
            )
        if Path(name).is_dir() and not any(Path(name).glob("*.safetensors")):
            raise refused(f"{name!r} cannot be loaded: {missing_weights(Path(name))}")
    return config


def check_adapter_folder(model: Model, path: str) -> None:
    """Raise RecipeError for an adapter: transformers would load the base that it names instead."""
    found = find_adapter_config_file(model.name_or_path, revision=model.revision)
    if found is None:
        return
    name = model.name_or_path
    if (Path(name) / "config.json").exists():
        message = f"{name!r} holds both a model (config.json) and an adapter "
        message += "(adapter_config.json). Move the files of one of them away."
    else:
        message = f"{name!r} is an adapter, not a whole model. Merge it into its base, with "
        message += f"`gpt2-recipes merge {name} OUT` if a run wrote it, and name OUT."
    raise RecipeError([Problem(path, message)])


def missing_config(folder: Path) -> str:
    """Say why a folder without config.json is no checkpoint, and what to do."""
    files = sorted(file.name for file in folder.iterdir())
    message = "the folder has no config.json" + (f" ({', '.join(files[:8])})." if files else ".")
    if any(name.endswith((".gguf", ".onnx")) for name in files):
        return f"{message} GGUF and ONNX files cannot be trained; use the original checkpoint."
    if HUB_ID.fullmatch(str(folder)):
        message += f" It hides the Hub repository {str(folder)!r}: rename or delete the folder to "
        return f"{message}load that."
    return f"{message} Name the folder of a checkpoint, or a Hub id."


def missing_weights(folder: Path) -> str:
    """Say what a folder without safetensors holds instead, and what to do."""
    files = sorted(file.name for file in folder.iterdir())
    message = "it has no model.safetensors"
    pickled = [name for name in files if name.endswith(PICKLED) and "training_args" not in name]
    if pickled:
        message += f", only {', '.join(pickled[:LISTED])}. Such files can run code and are not read"
        return f"{message}; load and save the model once with transformers to convert it."
    others = [name for name in files if name.endswith((".gguf", ".onnx"))]
    if others or any((folder / "onnx").glob("*.onnx")):
        return f"{message}. GGUF and ONNX files cannot be trained; use the original checkpoint."
    return f"{message}. Copy the weights there."


def check_weights(
    base: PreTrainedModel, loading: dict[str, Any], *, name: str, path: str, new_head: bool
) -> None:
    """Raise RecipeError unless every tensor of a model came from its checkpoint, and the reverse.

    `loading` is what `from_pretrained` returns with `output_loading_info`. With `new_head` the
    tensors outside the body may be new. The head of another task is dropped. Buffers that a model
    computes by itself are not weights.
    """
    misshapen = [*loading["mismatched_keys"], *misshapen_quantized(base)]
    problems = differing_tensors(
        name,
        "its config.json",
        missing=[k for k in loading["missing_keys"] if not (new_head and in_head(base, k))],
        unknown=dropped_weights(base, loading["unexpected_keys"]),
        misshapen=[
            f"{key} {tuple(found)}, not {tuple(expected)}"
            for key, found, expected in misshapen
            if not (new_head and in_head(base, key))
        ],
    )
    if problems:
        text = "The copy is not complete, or config.json is that of another model."
        raise RecipeError([Problem(path, f"{problem}. {text}") for problem in problems])


def differing_tensors(
    name: str,
    described: str,
    *,
    missing: Collection[str],
    unknown: Collection[str],
    misshapen: Collection[str],
) -> list[str]:
    """Say which tensors of a file are not those that are `described`."""
    kinds = [
        (f"{name!r} lacks {{}} tensors of {described}", missing),
        (f"{name!r} has {{}} tensors that {described} does not describe", unknown),
        (f"{name!r} has {{}} tensors of another shape than {described} says", misshapen),
    ]
    return [f"{text.format(f'{len(keys):,}')}: {some(keys)}" for text, keys in kinds if keys]


def some(names: Iterable[str]) -> str:
    """Name the first few of several tensors."""
    names = sorted(names)
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def in_head(model: PreTrainedModel, key: str) -> bool:
    """Tell a tensor next to the body of a model from one inside it."""
    return model.base_model is not model and not key.startswith(f"{model.base_model_prefix}.")


def dropped_weights(model: PreTrainedModel, keys: Collection[str]) -> list[str]:
    """Return which of the tensors that are not loaded are weights of the body.

    Checkpoints of a body alone name its tensors without the prefix.
    """
    parts = {name.split(".")[0] for name in model.base_model.state_dict()}
    buffers = {name for name, _ in model.named_buffers()}
    return [
        key
        for key in keys
        if not (key in buffers or STALE_BUFFERS.search(key))
        and (key.split(".")[0] in parts or not in_head(model, key))
    ]


def misshapen_quantized(model: PreTrainedModel) -> Iterator[tuple[str, Any, Any]]:
    """Yield name and both shapes of each quantised weight of another shape than its layer.

    transformers does not compare them.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            state = getattr(module.weight, "quant_state", None)
            found = tuple(module.weight.shape if state is None else state.shape)
            expected = (module.out_features, module.in_features)
            if found != expected:
                yield f"{name}.weight", found, expected


def loading_notes(
    base: PreTrainedModel, loading: dict[str, Any], given: Any, labels: tuple[str, ...]
) -> Iterator[str]:
    """Say what of a base is not as it was saved: its own code, or the head of the same task.

    `given` is the base's own config.
    """
    if getattr(given, "auto_map", None):
        yield f"model: its own code is not run; this is transformers' own {given.model_type}"
    for key, found, expected in sorted(loading["mismatched_keys"]):
        yield f"head: {key} of the base is {tuple(found)}; a new one, {tuple(expected)}, is trained"
    changed = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    kept = [k for k in base.state_dict() if in_head(base, k) and k not in changed]
    names = tuple(given.id2label[i] for i in sorted(given.id2label or {}))
    if labels and kept and not any(in_head(base, key) for key in changed) and names != labels:
        yield f"head: that of the base is kept; its {listed(names)} become {listed(labels)}"


def listed(names: tuple[str, ...]) -> str:
    """Name labels, the first ten of many."""
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")


def check_finite(model: torch.nn.Module, *, name: str, path: str) -> None:
    """Raise RecipeError that names the tensors with a NaN or Inf."""
    wrong = [
        key
        for key, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite()
    ]
    if wrong:
        message = f"{name!r} has {len(wrong):,} tensors that are not finite (NaN or Inf): "
        message += f"{some(wrong)}."
        raise RecipeError([Problem(path, f"{message} Use an undamaged copy.")])


def try_model(model: PreTrainedModel, *, causal: bool, name: str, path: str) -> None:
    """Run a model on a few tokens.

    Raise RecipeError where its logits are not finite or, if it must be `causal`, where those of a
    token depend on the tokens after it.
    """
    ids = (torch.arange(NUM_TRIED, device=model.device) % num_embeddings(model))[None]
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % num_embeddings(model)
    try:
        with without_8bit_outliers(model):
            logits = logits_of(model, ids)
            moved = (logits_of(model, other) - logits).abs() if causal else None
    except (AttributeError, RuntimeError) as error:
        if not getattr(model, "is_quantized", False):
            raise
        message = f"{name!r} does not run on quantised weights ({error}). Drop quantization."
        raise RecipeError([Problem(path, message)]) from error
    if not logits.isfinite().all():
        message = f"{name!r} gives logits that are not finite (NaN or Inf)."
        raise RecipeError([Problem(path, f"{message} Use an undamaged copy.")])
    # (1, tokens, vocabulary); those before the last token stay as they are but for rounding
    if moved is not None and moved[:, :-1].max() > 1e-3 * moved[:, -1].max():
        raise RecipeError(
            [
                Problem(
                    path,
                    f"{name!r}, of the family {model.config.model_type!r}, is not causal: its "
                    "tokens see those after them, which it would be trained to predict. Use a "
                    "decoder, such as gpt2, llama or qwen2.",
                )
            ]
        )


@contextmanager
def without_8bit_outliers(model: PreTrainedModel) -> Iterator[None]:
    """Keep the states of one token out of how 8-bit layers round those of another.

    LLM.int8() multiplies columns in which any token has an outlier in higher precision.
    """
    from bitsandbytes.nn import Linear8bitLt

    states = [m.state for m in model.modules() if isinstance(m, Linear8bitLt)]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold


def num_positions(config: Any) -> int:
    """Return the most tokens that a model reads at once; no limit is a very large number."""
    for name in ("max_position_embeddings", "max_seq_len"):
        number = getattr(config, name, None)
        if isinstance(number, int) and number > 0:
            return number
    return sys.maxsize


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the first logits that a model gives for tokens, as in evaluation."""
    training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    model.train(training)
    return next(value for key, value in outputs.items() if key.endswith("logits")).float()


# Adapters


def load_adapter_weights(base: PreTrainedModel, folder: Path, *, path: str) -> Any:
    """Put the adapter of a folder on its base.

    Raise RecipeError unless the file and the adapter have the same tensors.
    """
    from peft import PeftModel, get_peft_model_state_dict

    file = folder / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="pt") as content:
            found = {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}
        model = PeftModel.from_pretrained(base, str(folder), ignore_mismatched_sizes=True)
    except KeyError as error:  # peft's, for a module that is trained as a whole
        message = f"{file.name!r} lacks a tensor of adapter_config.json: {error.args[0]}"
        raise RecipeError([Problem(path, f"{message}. Use an undamaged copy.")]) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError([Problem(path, f"the adapter cannot be loaded: {error}")]) from error
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {key: tuple(tensor.shape) for key, tensor in state.items()}
    both = found.keys() & expected.keys()
    problems = differing_tensors(
        file.name,
        "adapter_config.json",
        missing=expected.keys() - found.keys(),
        unknown=found.keys() - expected.keys(),
        misshapen={
            f"{key} {found[key]}, not {expected[key]}"
            for key in both
            if found[key] != expected[key]
        },
    )
    if problems:
        raise RecipeError([Problem(path, f"{text}. Use an undamaged copy.") for text in problems])
    return model


# Tokenizers


def read_tokenizer(name: str, revision: str | None, *, path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or a Hub repository.

    Raise RecipeError, which names `path`, where its files are missing or damaged.
    """
    way_out = ""
    if path == "model.name_or_path":
        way_out = " Name the tokenizer that it was trained with by --model.tokenizer."
    fetched(Model(name_or_path=name, revision=revision), path=path, weights=False)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
    except Exception as error:  # each backend raises its own, tokenizers a bare Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        message = f"the tokenizer of {name!r} cannot be loaded: {reason}"
        raise RecipeError([Problem(path, f"{message}.{way_out}")]) from error
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        message = f"{name!r} has no tokenizer: its files are missing or empty, and every text "
        raise RecipeError([Problem(path, f"{message}would be read as nothing.{way_out}")])
    if tokenizer.eos_token_id is None:
        message = f"the tokenizer of {name!r} has no EOS token, which ends every text. Set "
        message += '"eos_token" in its tokenizer_config.json.'
        raise RecipeError([Problem(path, f"{message}{way_out}")])
    return tokenizer


def max_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest id of a vocabulary, which may have gaps."""
    return max(tokenizer.get_vocab().values())


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Examples
) -> Iterator[str]:
    """Yield a caution where a tokenizer loses characters of the training texts.

    Raise RecipeError where it loses most of them, or cannot do what the task needs.
    """
    if task.needs_offsets and not tokenizer.is_fast:
        message = (
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not tell the characters "
            f"of a token, as {type(task).__name__} needs. Name a model with a fast one."
        )
        raise RecipeError([Problem("model.tokenizer", message)])
    texts = [text[:SAMPLED_CHARACTERS] for text in islice(texts_of(examples), SAMPLED_TEXTS)]
    fraction = lost_fraction(tokenizer, texts)
    lost = f"{fraction:.0%} of the characters of the training texts"
    if fraction > MOST_LOST:
        message = f"the tokenizer loses {lost}, which are not in its vocabulary. Use a "
        message += "model whose tokenizer has them."
        raise RecipeError([Problem("model.tokenizer", message)])
    if fraction >= WORTH_A_CAUTION:
        yield f"the tokenizer loses {lost}: they are not in its vocabulary"


def texts_of(examples: Examples) -> Iterator[str]:
    """Yield the texts of rows that are not blank, those inside lists and messages too."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, str) and value.strip():
            yield value
        elif isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                yield from inside(each)

    for row in examples.rows:
        yield from inside(row)


def lost_fraction(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """Return the fraction of characters, without spaces, that encoding and decoding loses.

    They become unknown tokens, or no token at all.
    """

    def num_characters(text: str) -> int:
        return sum(not character.isspace() for character in text)

    if tokenizer.unk_token is not None:  # a separator of documents, say
        texts = [text.replace(str(tokenizer.unk_token), "") for text in texts]
    given = kept = 0
    for text, ids in zip(texts, token_ids(tokenizer, texts) if texts else [], strict=True):
        known = [number for number in ids if number != tokenizer.unk_token_id]
        decoded = str(tokenizer.decode(known))
        given += num_characters(text)
        kept += min(num_characters(decoded), num_characters(text))
    return 1 - kept / given if given else 0.0


# Token ids and embeddings


def num_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens a model can read."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.num_embeddings)


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, count: int, *, path: str) -> None:
    """Raise RecipeError for an EOS or pad token that a model has no embedding for."""
    problems = [
        Problem(
            path,
            f"the {kind} token {token!r} is token {number}, beyond the model's {count} "
            "embeddings: tokenizer and model do not match. Name the model's own tokenizer with "
            "--model.tokenizer.",
        )
        for kind, token, number in (
            ("EOS", tokenizer.eos_token, tokenizer.eos_token_id),
            ("pad", tokenizer.pad_token, tokenizer.pad_token_id),
        )
        if isinstance(number, int) and number >= count
    ]
    if problems:
        raise RecipeError(problems)


def check_vocabulary(features: Features, tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Raise DataError for the first encoded row with a token that the model has no embedding for.

    The rows of a stream are not known yet; `guard_embeddings` checks them.
    """
    if max_token_id(tokenizer) < count or not isinstance(features.dataset, list):
        return
    for index, row in enumerate(features.dataset):
        largest = max(
            int(max(ids)) for name, ids in row.items() if name.endswith("_ids") and len(ids)
        )
        if largest >= count:
            message = beyond(tokenizer, largest, count)
            raise DataError(f"{features.where(index)}: {message}")


def guard_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a model raise DataError for a token beyond its embeddings, where there can be one.

    Streams and rows to predict are not known beforehand; torch would raise an IndexError, or on a
    GPU end the process.
    """
    count = num_embeddings(model)
    if max_token_id(tokenizer) < count:
        return

    def check(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        largest = int(arguments[0].max())
        if largest >= count:
            raise DataError(beyond(tokenizer, largest, count))

    model.get_input_embeddings().register_forward_pre_hook(check)


def beyond(tokenizer: PreTrainedTokenizerBase, number: int, count: int) -> str:
    """Say that a token has no embedding."""
    token = tokenizer.convert_ids_to_tokens(number)
    return (
        f"{token!r} is token {number}, beyond the model's vocabulary of {count}: "
        "tokenizer and model do not match."
    )
