"""What makes a CPU fast at small decoders; no result changes beyond rounding."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "192", "LRU_CACHE_CAPACITY": "64"}
"""What oneDNN, and torch before it, keep of kernels: those of a few steps, and of one."""


def prepare_cpu() -> None:
    """Set the process up to compute. docs/benchmarks.md has what each optimisation is worth."""
    disable_malloc_trim()
    limit_kernel_caches()
    # What allows oneDNN to round to bfloat16 does not make it do so, except on units for it (AMX)
    backend: Any = torch.backends.mkldnn
    backend.matmul.fp32_precision = "bf16" if onednn_fp32_is_exact() else "ieee"


def onednn_fp32_is_exact() -> bool:
    """Say whether oneDNN has AVX-512 kernels here, in full precision.

    MKL has none for other makers' processors than Intel's.
    """
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_f")) and not able.get("amx_bf16")


def slow_precision() -> Iterator[str]:
    """Yield a warning where bfloat16 was asked of a processor that has no units for it."""
    able = torch.cpu.get_capabilities()
    units = able.get("avx512_bf16") or able.get("amx_bf16")
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    if wanted and able.get("architecture") == "x86_64" and not units:
        yield "bfloat16 is slow on this processor, which has no units for it; --mixed_precision no"


def disable_malloc_trim() -> None:
    """Keep what is freed from now on, for the tensors of the next step, which are as large.

    The kernel would clear each of its pages anew.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def limit_kernel_caches() -> None:
    """Keep oneDNN from holding kernels of steps long gone, in which matrices had other shapes.

    It makes one for each shape and holds the latest 1,024, torch as many again: a gigabyte or two,
    strewn over the memory that is kept for the next step. What is set in the environment already
    stands. No effect after the first product by oneDNN.
    """
    for name, capacity in KERNELS.items():
        os.environ.setdefault(name, capacity)


def restore_malloc_trim() -> None:
    """Give the kernel back what is freed, at once: copies of weights while they are quantised."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 65_536)
        libc.mallopt(M_MMAP_THRESHOLD, 131_072)
