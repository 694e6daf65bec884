"""Every private name and every patch of the libraries that models need, one function each.

Each says why there is no public way. tests/models/test_upstream.py fails where a library renames
or changes what these rely on.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, modeling_utils


def has_head_for(auto_class: str, config: Any) -> bool:
    """Tell whether an auto class of transformers has a model for a config's family.

    The public way, `from_config`, would build the model to find out.
    """
    return type(config) in getattr(transformers, auto_class)._model_mapping


def attention_of(model: PreTrainedModel) -> str:
    """Return the name of a model's attention implementation, "sdpa" say.

    transformers has `set_attn_implementation`, and nothing public that reads it.
    """
    return str(model.config._attn_implementation)


def flash_attention_of_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    *,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Return the output of causal attention inside of segments, (tokens, heads, width of a head).

    Queries, keys and values have that shape, too. Segments begin at `bounds`, (segments + 1,)
    int32, and have at most `longest` tokens. On CUDA in half precision only. The public
    `varlen_attn` is the same kernel without dropout, with which GPT-2's checkpoints are trained.
    """
    kernel = torch.ops.aten._flash_attention_forward
    options = {"scale": scaling}
    outputs: tuple[torch.Tensor, ...] = kernel(
        query, key, value, bounds, bounds, longest, longest, dropout, True, False, **options
    )
    return outputs[0]


def count_shifted_labels(model: PreTrainedModel) -> None:
    """Let the Trainer count the labels of a language model that have a token before them.

    The Trainer looks at `loss_type`, which transformers derives from the class's name and finds for
    no GPT-2; a config argument of that name is refused. Unset, the loss of short rows is too small.
    """
    model.loss_type = "ForCausalLM"


def replace_forward(model: PreTrainedModel, forward: Callable[..., Any]) -> None:
    """Let a model compute another forward pass; `forward` takes the model first.

    A wrapping module would serve, but for what looks at the type of the model: saving, PEFT and
    the Trainer. accelerate and trl replace it in the same way.
    """
    module: Any = model
    module.forward = types.MethodType(forward, model)


def skip_padding_check(model: PreTrainedModel) -> None:
    """Let a model not look whether rows without a mask begin or end with padding.

    transformers reads tokens for that in each forward pass, for which a host waits for its GPU. The
    batches of training need no mask: padding is on the right, and has no labels.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            unchecked: Any = module
            unchecked.warn_if_padding_and_no_attention_mask = _no_check


def _no_check(*_: Any, **__: Any) -> None:
    """Do nothing."""


@contextmanager
def tensors_read_singly() -> Iterator[None]:
    """Read each tensor of a checkpoint when its turn comes, and not the whole file.

    transformers maps the file into memory, all of which is then resident next to the quantised
    weights. safetensors can read by `pread`; transformers chooses that on other systems only and
    has no argument for it.
    """
    module: Any = modeling_utils
    safe_open = module.safe_open

    def read(file: str, **options: Any) -> Any:
        return safe_open(file, **options | {"backend": "pread"})

    module.safe_open = read
    try:
        yield
    finally:
        module.safe_open = safe_open


def keep_4bit_layout(base: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with bfloat16 units.

    It does so in place at the first evaluation, and has no option against it: the scales are
    rounded to bfloat16, training then continues with other weights, and widths that are not a
    multiple of 64 raise in a reshape.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def forget_outlier_columns(base: PreTrainedModel) -> None:
    """Let 8-bit layers not keep the numbers of the columns with outliers after a forward pass.

    Each layer keeps a tensor of some bytes, for nothing: what backward needs is in its own context.
    On a CPU it lies amid the large tensors that were freed, which cannot be joined for the next.
    bitsandbytes has no option against it.
    """
    from bitsandbytes.nn.modules import Linear8bitLt

    def forget(module: Any, inputs: Any, output: Any) -> None:
        module.state.idx = None

    for module in base.modules():
        if isinstance(module, Linear8bitLt):
            module.register_forward_hook(forget)


@contextmanager
def without_8bit_outliers(model: PreTrainedModel) -> Iterator[None]:
    """Let no token's outliers change how 8-bit layers round the states of another token.

    LLM.int8() multiplies columns in which any token has an outlier in higher precision. The
    threshold is an argument of the layer's construction alone.
    """
    from bitsandbytes.nn.modules import Linear8bitLt

    states = [module.state for module in model.modules() if isinstance(module, Linear8bitLt)]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold
