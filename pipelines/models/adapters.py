"""LoRA adapters: create one for a recipe, or load the one of a result."""

from __future__ import annotations

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


def add_adapter(base: PreTrainedModel, recipe: Recipe) -> Any:
    """Put a LoRA adapter on every target module; the head is trained as a whole."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    lora = recipe.lora
    assert lora is not None
    check_targets(base, lora, recipe.task.head)
    if recipe.quantization:
        prepare: Any = prepare_model_for_kbit_training
        base = prepare(base, use_gradient_checkpointing=False)
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
    assert lora is not None
    assert isinstance(recipe.model, Model)
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


def check_targets(base: PreTrainedModel, lora: Lora, head: str | None) -> None:
    """Raise RecipeError for a target that names anything but linear layers of the body.

    PEFT matches the name of a module, or its end.
    """
    if lora.target_modules == ("all-linear",):
        return
    modules = dict(base.named_modules())
    outside = {head, "lm_head"}
    linear = {
        name
        for name, module in modules.items()
        if isinstance(module, torch.nn.Linear | Conv1D) and name not in outside
    }
    known = ["all-linear", *sorted({name.rsplit(".", 1)[-1] for name in linear})]
    problems = []
    for target in lora.target_modules:
        matched = {name for name in modules if f".{name}".endswith(f".{target}")}
        others = sorted({type(modules[name]).__name__ for name in matched - linear - outside})
        if target == "lm_head":
            text = "an adapter on 'lm_head' would, merged, change the embeddings, which share its "
            text += "weights."
        elif target == head:
            text = f"{target!r} is trained as a whole. Leave it out."
        elif not matched:
            text = f"the model has no {target!r}; {suggest(target, known)}"
        elif others:
            text = f"{target!r} is {others[0]}, not a linear layer. Allowed: {', '.join(known)}."
        else:
            continue
        problems.append(Problem("lora.target_modules", text))
    if problems:
        raise RecipeError(problems)


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
