"""Check the tensors of a result: data types, shapes, finite values."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipelines.errors import NonFiniteError
from pipelines.recipe.schema import shortened
from pipelines.results.sidecar import file_error

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
Tensors = dict[str, tuple[str, tuple[int, ...]]]  # data type and shape of each


def read_shapes(file: Path) -> Tensors:
    """Return data types and shapes of the tensors of a file.

    safetensors checks its header: at most 100 MB, offsets inside the file, no gaps or overlaps.
    """
    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise file_error(file.name, f"is damaged: {shortened(str(error))}") from None


def read_tensors(file: Path) -> Tensors:
    """Return data types and shapes of tensors. Raise NonFiniteError for NaN or Inf in them."""
    tensors = read_shapes(file)
    with safe_open(file, "pt") as opened:
        for name, (dtype, _) in tensors.items():
            if dtype not in FLOATS:
                continue
            tensor = opened.get_tensor(name)
            # a sum with a NaN or Inf is never finite; one of finite values may overflow
            if not tensor.sum().isfinite() and not tensor.isfinite().all():
                raise NonFiniteError(f"{file.name}: {name!r} holds values that are not finite.")
    return tensors
