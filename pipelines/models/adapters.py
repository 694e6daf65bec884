"""LoRA adapters: create one for a recipe, or load the one of a result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipelines.errors import Problem, RecipeError
from pipelines.models.checkpoint_checks import differing_tensors
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import suggest
from pipelines.recipe.values import Lora, Model

if TYPE_CHECKING:
    from peft import LoraConfig

ALL_LINEAR = ("all-linear",)
"""PEFT's word for all linear layers but the head."""


def add_adapter(base: PreTrainedModel, recipe: Recipe) -> Any:
    """Put a LoRA adapter on every target module; the head is trained as a whole."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    lora = recipe.lora
    assert lora is not None
    if recipe.quantization:
        prepare: Any = prepare_model_for_kbit_training
        base = prepare(base, use_gradient_checkpointing=False)
    initial = lora.init_lora_weights
    transposed = any(isinstance(module, Conv1D) for module in base.modules())
    if initial == "olora" and transposed:
        text = "'olora' does not know GPT-2's Conv1D layers; did you mean pissa?"
        raise RecipeError([Problem("lora.init_lora_weights", text)])
    targets = target_modules(base, lora, recipe.task.head)
    return get_peft_model(base, lora_config(recipe, targets, fan_in_fan_out=transposed))


def lora_config(
    recipe: Recipe, targets: list[str] | None = None, *, fan_in_fan_out: bool = False
) -> LoraConfig:
    """Return PEFT's configuration of a recipe's adapter, on `targets` if not the recipe's."""
    from peft import LoraConfig

    lora, task = recipe.lora, recipe.task
    assert lora is not None
    assert isinstance(recipe.model, Model)
    return LoraConfig(
        task_type=task.peft_task_type,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets or list(lora.target_modules),
        exclude_modules=[task.head] if task.head else None,
        modules_to_save=[task.head] if task.head else None,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,
        fan_in_fan_out=fan_in_fan_out,
        revision=recipe.model.revision,
    )


def target_modules(base: PreTrainedModel, lora: Lora, head: str | None) -> list[str]:
    """Return the ends of names by which PEFT finds the layers of an adapter.

    Where an end is also that of another module, such as the head, whole names take its place.
    Raise RecipeError for a target that names anything but linear layers of the body.
    """
    names = [name for name, _ in base.named_modules()]
    linear = [
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and name not in (head, "lm_head")
    ]
    ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if lora.target_modules != ALL_LINEAR:
        for target in lora.target_modules:
            check_target(target, base, linear, ["all-linear", *ends], head)
        return list(lora.target_modules)
    shared = [end for end in ends if not matched(end, names) <= set(linear)]
    whole = [name for name in linear if name.rsplit(".", 1)[-1] in shared]
    return [*(end for end in ends if end not in shared), *whole]


def matched(target: str, names: Iterable[str]) -> set[str]:
    """Return the names that are a target or end with it, as PEFT takes it."""
    return {name for name in names if f".{name}".endswith(f".{target}")}


def check_target(
    target: str, base: PreTrainedModel, linear: list[str], allowed: list[str], head: str | None
) -> None:
    """Raise RecipeError for a target that is not the name or the end of linear layers alone."""
    modules = dict(base.named_modules())
    found = matched(target, modules)
    others = sorted({type(modules[name]).__name__ for name in found - {*linear, head, "lm_head"}})
    if target == "lm_head":
        text = "an adapter on 'lm_head' would, merged, change the embeddings, which share its "
        text += "weights."
    elif target == head:
        text = f"{target!r} is trained as a whole. Leave it out."
    elif not found:
        text = f"the model has no {target!r}; {suggest(target, allowed)}"
    elif others:
        text = f"{target!r} is {others[0]}, not a linear layer. Allowed: {', '.join(allowed)}."
    else:
        return
    raise RecipeError([Problem("lora.target_modules", text)])


def load_adapter_weights(base: PreTrainedModel, folder: Path, *, path: str) -> Any:
    """Put the adapter of a folder on its base.

    Raise RecipeError unless the file and the adapter have the same tensors.
    """
    from peft import PeftModel, get_peft_model_state_dict

    file = folder / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="pt") as content:
            names = list(content.keys())
            shapes = {name: tuple(content.get_slice(name).get_shape()) for name in names}
        model = PeftModel.from_pretrained(base, str(folder), ignore_mismatched_sizes=True)
    except KeyError as error:  # peft's, for a module that is trained as a whole
        message = f"{file.name!r} lacks a tensor of adapter_config.json: {error.args[0]}"
        raise RecipeError([Problem(path, f"{message}. Use an undamaged copy.")]) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError([Problem(path, f"the adapter cannot be loaded: {error}")]) from error
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {key: tuple(tensor.shape) for key, tensor in state.items()}
    both = shapes.keys() & expected.keys()
    problems = differing_tensors(
        file.name,
        "adapter_config.json",
        missing=expected.keys() - shapes.keys(),
        unknown=shapes.keys() - expected.keys(),
        misshapen={
            f"{key} {shapes[key]}, not {expected[key]}"
            for key in both
            if shapes[key] != expected[key]
        },
    )
    if problems:
        raise RecipeError([Problem(path, f"{text}. Use an undamaged copy.") for text in problems])
    return model


def merge_where_exact(model: Any) -> Any:
    """Merge an adapter into a base in fp32, which moves logits by rounding alone.

    Other models are returned as they are: merging into 8 or 4 bits, or bfloat16, would change what
    they predict.
    """
    import torch
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    if any(each.dtype != torch.float32 for each in model.parameters()):
        return model
    unload: Any = model.merge_and_unload
    return unload()
