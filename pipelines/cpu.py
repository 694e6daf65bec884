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
FUSED_ATTENTION_TOKENS = 384
"""Rows up to this length take attention in plain products, which are faster than fused there."""


def prepare_cpu(num_tokens: int) -> None:
    """Set the process up to compute on rows of at most `num_tokens`.

    BENCHMARKS.md has what each means pays. Products of matrices go to oneDNN where it has AVX-512
    kernels in full precision; MKL has none for other makers' processors than Intel's. What allows
    oneDNN to round to bfloat16 does not make it do so, except on units for it (AMX).
    """
    keep_memory()
    keep_few_kernels()
    able = torch.cpu.get_capabilities()
    onednn = bool(able.get("avx512_f")) and not able.get("amx_bf16")
    backend: Any = torch.backends.mkldnn
    backend.matmul.fp32_precision = "bf16" if onednn else "ieee"
    # CPUs obey this switch too. Fused attention multiplies tiles, each at oneDNN's cost of a call
    torch.backends.cuda.enable_flash_sdp(not onednn or num_tokens > FUSED_ATTENTION_TOKENS)


def slow_precision() -> Iterator[str]:
    """Yield a warning where bfloat16 was asked of a processor that has no units for it."""
    able = torch.cpu.get_capabilities()
    units = able.get("avx512_bf16") or able.get("amx_bf16")
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    if wanted and able.get("architecture") == "x86_64" and not units:
        yield "bfloat16 is slow on this processor, which has no units for it; --mixed_precision no"


def keep_memory() -> None:
    """Keep what is freed from now on, for the tensors of the next step, which are as large.

    The kernel would clear each of its pages anew.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def keep_few_kernels() -> None:
    """Keep oneDNN from holding kernels of steps long gone, in which matrices had other shapes.

    It makes one for each shape and holds the latest 1,024, torch as many again: a gigabyte or two,
    strewn over the memory that is kept for the next step. What is set in the environment already
    stands. No effect after the first product by oneDNN.
    """
    for name, capacity in KERNELS.items():
        os.environ.setdefault(name, capacity)


def give_memory_back() -> None:
    """Give the kernel back what is freed, at once: copies of weights while they are quantised."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 65_536)
        libc.mallopt(M_MMAP_THRESHOLD, 131_072)
