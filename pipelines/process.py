"""Settings of the whole process: what the libraries print, and how a CPU computes."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers.utils import logging as transformers_logging

from pipelines.collector import collect_as_usual
from pipelines.log import quiet_bitsandbytes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "192", "LRU_CACHE_CAPACITY": "64"}
"""Kernels that oneDNN keeps, and torch before it: those of a few steps, and of one."""
FALSE_ALARMS = (
    "fan_in_fan_out is set to False but",
    "`is_gradient_checkpointing` is deprecated",
    "`gradient_checkpointing_disable` is deprecated",
    "`gradient_checkpointing_enable` is deprecated",
    "`label_smoothing_factor` is deprecated",
    "`broadcast_buffers` is deprecated",
    "`torch.distributed.all_gather_into_tensor` is deprecated",
    "`torch.distributed.reduce_scatter_tensor` is deprecated",
)
"""Beginnings of Python warnings that the libraries raise for every model. docs/progress.md lists
them, as it does those below."""
FALSE_ALARMS_LOGGED = (
    "We strongly recommend passing in an `attention_mask`",
    "LOAD REPORT",
    "return_assistant_tokens_mask==True but chat template does not contain",
    "Token indices sequence length is longer than the specified maximum sequence length",
    "The tokenizer has new PAD/BOS/EOS tokens that differ from the model config",
    "There were missing keys in the checkpoint model loaded: ['lm_head.weight']",
    "The following arguments do not match the ones in the `trainer_state.json`",
    "Passing `generation_config` together with generation-related arguments",
    "A custom logits processor of type",
)
"""Parts of transformers' log messages that say nothing about a run."""


@contextmanager
def prepare_process() -> Iterator[None]:
    """Make every setting of the process that a run, or a loaded result, needs.

    Verbosity, progress bars and warnings are restored at the end. On a CPU the allocator, oneDNN's
    kernels and the precision of its products are set, for good; no result changes beyond rounding.
    """
    quiet_bitsandbytes()
    collect_as_usual()
    if PartialState().device.type == "cpu":
        limit_kernel_caches()
        disable_malloc_trim()
        set_matmul_precision()
    with quiet_libraries():
        yield


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence false alarms and progress bars of the libraries inside."""
    library: Any = transformers_logging
    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    bars_of_datasets = not datasets.are_progress_bars_disabled()
    handlers = logging.getLogger("transformers").handlers
    alarms = WithoutFalseAlarms()
    for handler in handlers:
        handler.addFilter(alarms)
    if not PartialState().is_main_process:
        library.set_verbosity_error()
    library.disable_progress_bar()
    if bars_of_datasets:
        datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for start in FALSE_ALARMS:
                warnings.filterwarnings("ignore", message=start)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(alarms)
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
        if bars_of_datasets:
            datasets.enable_progress_bars()


class WithoutFalseAlarms(logging.Filter):
    """Lets log messages through that may say something about a run."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(part in message for part in FALSE_ALARMS_LOGGED)


def limit_kernel_caches() -> None:
    """Keep oneDNN from holding kernels of earlier steps, whose matrices had other shapes.

    It makes a kernel for each shape and holds the latest 1,024, torch as many again: that fragments
    the reused heap by 1 to 2 GB. A value in the environment has precedence. No effect after the
    first product by oneDNN.
    """
    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)


def set_matmul_precision() -> None:
    """Let oneDNN multiply fp32 matrices where it does so in full precision.

    The setting that allows it to round to bfloat16 does not make it do so, except on units for it.
    """
    backend: Any = torch.backends.mkldnn
    backend.matmul.fp32_precision = "bf16" if onednn_fp32_is_exact() else "ieee"


def onednn_fp32_is_exact() -> bool:
    """Tell whether oneDNN has AVX-512 kernels here that multiply in full precision.

    Without them MKL multiplies, which is slow on processors of other makers than Intel. Units for
    bfloat16 matrices (AMX) would round.
    """
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_f")) and not able.get("amx_bf16")


def slow_precision() -> Iterator[str]:
    """Yield a warning if bfloat16 is requested of a processor that has no units for it."""
    able = torch.cpu.get_capabilities()
    units = able.get("avx512_bf16") or able.get("amx_bf16")
    if bf16_requested() and able.get("architecture") == "x86_64" and not units:
        yield "bfloat16 is slow on this processor, which has no units for it; --mixed_precision no"


def bf16_requested() -> bool:
    """Tell whether the launcher has requested bfloat16."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"


@contextmanager
def tf32_products() -> Iterator[None]:
    """Let a GPU round the factors of fp32 products to TF32 inside.

    For these, bfloat16 layers with inputs in fp32 would otherwise be several times slower.
    """
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")  # the default


def disable_malloc_trim() -> None:
    """Keep freed memory for the tensors of the next step, which are as large.

    Otherwise the OS zeroes every page again.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def restore_malloc_trim() -> None:
    """Return freed memory to the OS at once."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 65_536)
        libc.mallopt(M_MMAP_THRESHOLD, 131_072)


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Return memory that is freed inside to the OS, in a process that is prepared for a CPU.

    What reads rows or weights makes copies that no training step would use again.
    """
    on_cpu = PartialState().device.type == "cpu"
    if on_cpu:
        restore_malloc_trim()
    try:
        yield
    finally:
        if on_cpu:
            disable_malloc_trim()


@contextmanager
def trimming_memory() -> Iterator[None]:
    """Return what was freed to the OS at both ends of a phase whose tensors have other sizes.

    They would fit badly into what the phase before has freed, and the process would hold both.
    """
    trim_memory()
    try:
        yield
    finally:
        trim_memory()


def trim_memory() -> None:
    """Return what was freed to the OS."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def release_memory() -> None:
    """Free the model of a run, also one in a reference cycle, before the next run loads its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
