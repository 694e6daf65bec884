"""Tokenizers and models: a checkpoint or random weights, 8 or 4 bits, an adapter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers
from accelerate import PartialState
from safetensors import SafetensorError
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as TokenizersTokenizer
from transformers import (
    BitsAndBytesConfig,
    GPT2Config,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    modeling_utils,
)
from transformers.pytorch_utils import Conv1D

from pipelines.attention import use_plain_attention
from pipelines.cpu import give_memory_back, prepare_cpu
from pipelines.errors import Problem, RecipeError
from pipelines.fields import nearest
from pipelines.pretrained import (
    check_finite,
    check_special_tokens,
    check_weights,
    fetched,
    guard_embeddings,
    loading_notes,
    max_token_id,
    num_embeddings,
    num_positions,
    read_config,
    read_tokenizer,
    try_model,
)
from pipelines.recipe import NF4, Int8, Lora, Model, Recipe, Scratch
from pipelines.report import console
from pipelines.tasks import Task
from pipelines.tasks.spans import CONTRACTION_OR_SYMBOL

if TYPE_CHECKING:
    from peft import LoraConfig

HEADS = ["lm_head", "embed_out", "output_projection", "cls", "score", "qa_outputs", "classifier"]
"""Kept in full precision."""
EOS = "<|endoftext|>"
FUSED = {"gelu_new": "gelu_pytorch_tanh"}
"""Activations and the same functions in one kernel; GPT-2's own is eight of them."""


def load_tokenizer(
    model: Model | Scratch,
    texts: Iterable[str],
    *,
    max_length: int,
    chat_template: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load the checkpoint's tokenizer, or train one on `texts`.

    EOS is the pad token where there is none, or where the model has no embedding for it.
    `chat_template` is for a tokenizer that has none.
    """
    wanted = model.tokenizer if isinstance(model, Scratch) else model
    tokenizer: PreTrainedTokenizerBase
    if isinstance(wanted, Model):
        name, revision = wanted.tokenizer_source
        path = "model.tokenizer" if wanted.tokenizer else "model.name_or_path"
        tokenizer = read_tokenizer(name, revision, path=path)
    elif wanted.kind == "char":
        tokenizer = train_char_tokenizer(texts)
    else:
        tokenizer = train_bpe_tokenizer(texts, wanted.vocab_size)
    if isinstance(model, Model):
        replace_pad_token(tokenizer, read_config(model, None, "model.name_or_path"))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = chat_template
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = model.n_positions if isinstance(model, Scratch) else max_length
    return tokenizer


def replace_pad_token(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Pad with EOS, and say so, where a model has no embedding for the tokenizer's pad token."""
    number = getattr(config.get_text_config(), "vocab_size", None)
    pad = tokenizer.pad_token_id
    if number is not None and isinstance(pad, int) and pad >= number:
        console().print(
            f"  padding: the pad token {tokenizer.pad_token!r} is token {pad}, beyond the model's "
            f"{number} embeddings; {tokenizer.eos_token!r} pads instead",
            markup=False,
        )
        tokenizer.pad_token = tokenizer.eos_token


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train GPT-2's byte-level BPE, without merges of digits or of punctuation.

    It then reads numbers digit by digit, and a context of `QuestionAnswering` as any text.
    """
    bpe = TokenizersTokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CONTRACTION_OR_SYMBOL), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return GPT2Tokenizer(vocab=model["vocab"], merges=merges, eos_token=EOS, pad_token=EOS)


def train_char_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Give each character of the texts a token; another character becomes EOS."""
    characters = sorted({character for text in texts for character in text})
    vocab = {EOS: 0} | {c: i for i, c in enumerate(characters, start=1)}
    backend = TokenizersTokenizer(models.BPE(vocab=vocab, merges=[], unk_token=EOS))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, pad_token=EOS, unk_token=EOS, bos_token=EOS
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]) -> Any:
    """Return the model to train: base, head and, if the recipe has one, a new adapter."""
    task = recipe.task
    if isinstance(recipe.model, Scratch):
        return from_scratch(task, recipe.model, tokenizer, labels)
    base = load_base(
        task,
        recipe.model,
        labels,
        quantization=recipe.quantization,
        tokenizer=tokenizer,
    )
    return base if recipe.lora is None else add_adapter(base, recipe)


def from_scratch(
    task: Task, model: Scratch, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]
) -> PreTrainedModel:
    """Return a GPT-2 with random weights."""
    layers, heads, width = model.widths
    config = GPT2Config(
        vocab_size=1 + max_token_id(tokenizer),
        n_positions=model.n_positions,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        resid_pdrop=model.dropout,
        embd_pdrop=model.dropout,
        attn_pdrop=model.dropout,
        summary_first_dropout=0.0,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **task.model_kwargs(labels),
    )
    base = getattr(transformers, task.auto_class).from_config(config)
    if PartialState().device.type == "cpu":
        prepare_cpu()
        use_plain_attention(base, task.length)
    return base


def load_base(
    task: Task,
    model: Model,
    labels: tuple[str, ...],
    *,
    quantization: Int8 | NF4 | None,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.float32,
    head: Literal["own", "new", "adapter"] = "new",
    path: str = "model.name_or_path",
) -> PreTrainedModel:
    """Load a checkpoint in `dtype`, 8 or 4 bits with the head of the task.

    The head is the checkpoint's own; or new, where it has none of this size, to be trained; or
    comes with an adapter. A language model's is always its own. Raise RecipeError, which names
    `path`, for a checkpoint that lacks any other tensor, or cannot do what the task needs.
    """
    on_cpu = PartialState().device.type == "cpu"
    if on_cpu and quantization:
        give_memory_back()
    name, given = model.name_or_path, read_config(model, task, path)
    fetched(model, path=path)
    base, loading = read_weights(
        task,
        model,
        labels,
        given,
        quantization=quantization,
        tokenizer=tokenizer,
        dtype=dtype,
        path=path,
    )
    new_head = task.head is not None and head != "own"
    check_weights(base, loading, name=name, path=path, new_head=new_head)
    check_finite(base, name=name, path=path)
    check_special_tokens(tokenizer, num_embeddings(base), path=path)
    positions = num_positions(base.config)
    if task.length > positions:
        text = f"{task.length} is above the model's {positions}."
        raise RecipeError([Problem(f"task.{task.length_field}", text)])
    if on_cpu:
        prepare_cpu()
        use_plain_attention(base, task.length)
    keep_4bit_layout(base)
    try_model(base, causal=task.head is None, name=name, path=path)
    guard_embeddings(base, tokenizer)
    if head == "new":
        for note in loading_notes(base, loading, given, labels):
            console().print(f"  {note}", markup=False)
    return base


def read_weights(
    task: Task,
    model: Model,
    labels: tuple[str, ...],
    given: Any,
    *,
    quantization: Int8 | NF4 | None,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    path: str,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a checkpoint's model and what transformers reports of loading it.

    `given` is its config.
    """
    state = PartialState()
    on_gpu = state.device.type != "cpu"
    loader = getattr(transformers, task.auto_class)
    fused = FUSED.get(getattr(given, "activation_function", ""))
    try:
        with tensors_read_singly() if quantization else nullcontext():
            return loader.from_pretrained(
                model.name_or_path,
                revision=model.revision,
                trust_remote_code=False,
                use_safetensors=True,  # no pickle is read
                ignore_mismatched_sizes=True,  # `check_weights` names them
                output_loading_info=True,
                dtype=dtype,
                pad_token_id=tokenizer.pad_token_id,
                quantization_config=quantization_config(quantization),
                device_map={"": state.device} if quantization and on_gpu else None,
                **({"activation_function": fused} if fused else {}),
                **task.model_kwargs(labels),
            )
    except (OSError, SafetensorError) as error:  # files that are missing, or damaged
        text = f"{model.name_or_path!r} cannot be loaded: {error}"
        raise RecipeError([Problem(path, text)]) from error


@contextmanager
def tensors_read_singly() -> Iterator[None]:
    """Read each tensor of a checkpoint when it is due.

    transformers maps the file, all of which is then resident beside the quantised weights. It knows
    the other way of safetensors too, but takes it only on other systems.
    """
    module: Any = modeling_utils
    mapped = module.safe_open

    def read(file: str, **options: Any) -> Any:
        return mapped(file, **options | {"backend": "pread"})

    module.safe_open = read
    try:
        yield
    finally:
        module.safe_open = mapped


def keep_4bit_layout(base: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with bfloat16 units.

    It does so in place at the first evaluation: the scales are rounded to bfloat16 and training
    then goes on with other weights; widths that are no multiple of 64 raise in a reshape.
    """
    from bitsandbytes.nn import Linear4bit

    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def quantization_config(quantization: Int8 | NF4 | None) -> BitsAndBytesConfig | None:
    """Translate to bitsandbytes' terms; heads stay in full precision."""
    match quantization:
        case None:
            return None
        case Int8():
            options: dict[str, Any] = {
                "load_in_8bit": True,
                "llm_int8_threshold": quantization.llm_int8_threshold,
            }
        case NF4():
            cuda = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            options = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": quantization.bnb_4bit_use_double_quant,
                "bnb_4bit_compute_dtype": torch.bfloat16 if cuda else torch.float32,
            }
    return BitsAndBytesConfig(**options, llm_int8_skip_modules=HEADS)


def add_adapter(base: PreTrainedModel, recipe: Recipe) -> Any:
    """Put a LoRA adapter on every target module; the head is trained beside it."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    lora = recipe.lora
    assert lora is not None
    check_targets(base, lora)
    if recipe.quantization:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    initial = lora.init_lora_weights
    transposed = any(isinstance(module, Conv1D) for module in base.modules())
    if initial == "olora" and transposed:
        text = "'olora' does not know GPT-2's Conv1D layers; did you mean pissa?"
        raise RecipeError([Problem("lora.init_lora_weights", text)])
    config = lora_config(recipe, fan_in_fan_out=transposed)
    return get_peft_model(base, config)


def lora_config(recipe: Recipe, *, fan_in_fan_out: bool = False) -> LoraConfig:
    """Return PEFT's configuration of a recipe's adapter."""
    from peft import LoraConfig

    lora, task = recipe.lora, recipe.task
    assert lora is not None and isinstance(recipe.model, Model)
    every = lora.target_modules == ("all-linear",)
    return LoraConfig(
        task_type=task.peft_task_type,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules="all-linear" if every else list(lora.target_modules),
        exclude_modules=[task.head] if task.head else None,
        modules_to_save=[task.head] if task.head else None,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,
        fan_in_fan_out=fan_in_fan_out,
        revision=recipe.model.revision,
    )


def check_targets(base: PreTrainedModel, lora: Lora) -> None:
    """Raise RecipeError for a target module that the model does not have."""
    if lora.target_modules == ("all-linear",):
        return
    known = sorted({name.rsplit(".", 1)[-1] for name, _ in base.named_modules() if name})
    problems = [
        Problem("lora.target_modules", f"the model has no {target!r}; {nearest(target, known)}")
        for target in lora.target_modules
        if target.rsplit(".", 1)[-1] not in known
    ]
    if "lm_head" in lora.target_modules:
        text = (
            "an adapter on 'lm_head' would, merged, change the embeddings, which share its weights."
        )
        problems.append(Problem("lora.target_modules", text))
    if problems:
        raise RecipeError(problems)
