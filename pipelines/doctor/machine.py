"""Python, processor, GPUs, kernels for quantised bases, compiler, and free disk space."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from pipelines.doctor.finding import Finding
from pipelines.results.disk import free_space

LEAST_FREE = 5e9
"""Bytes of disk space below which there is a caution: a run of GPT-2 124M writes about 4 GB."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where Linux tells a container how much memory it may use."""


def check_machine(torch: ModuleType) -> Iterator[Finding]:
    """Yield the findings that need torch: devices, kernels for quantised bases, torch.compile."""
    yield processor(torch)
    yield from gpus(torch)
    yield quantisation_kernels(torch)
    yield compiler(torch)


def python() -> Finding:
    """Return the versions of Python and of the operating system."""
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return Finding("Python", f"{platform.python_version()} on {system}")


def processor(torch: ModuleType) -> Finding:
    """Return cores, threads, units for bfloat16, and memory."""
    able = torch.cpu.get_capabilities()
    units = [
        name
        for key, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512"), ("bf16", "Arm"))
        if able.get(key)
    ]
    bf16 = f"bf16 by {units[0]}" if units else "no units for bf16, so it is slow"
    cores = psutil.cpu_count(logical=False) or 1
    threads = torch.get_num_threads()
    total, available = memory()
    text = f"{cores} cores, {threads} thread{'s' * (threads > 1)} in use; {bf16}; "
    text += f"{gigabytes(available)} of {gigabytes(total)} memory free"
    if threads < cores:
        fix = f"Set OMP_NUM_THREADS to {cores}, unless other runs need the other cores."
        return Finding("CPU", text, "caution", fix)
    return Finding("CPU", text)


def memory() -> tuple[int, int]:
    """Return the total and the available bytes of memory, within the limit of a container."""
    found = psutil.virtual_memory()
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    if limit == "max" or int(limit) >= found.total:
        return found.total, found.available
    used = int(CGROUP_LIMIT.with_name("memory.current").read_text())
    return int(limit), min(found.available, max(0, int(limit) - used))


def gpus(torch: ModuleType) -> Iterator[Finding]:
    """Yield a line for each GPU that torch can use, or one for there being none."""
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            yield gpu(torch, i)
    elif torch.accelerator.is_available():
        yield Finding("GPU", f"{torch.accelerator.current_accelerator()}, not tested")
    else:
        yield no_gpu(torch)


def gpu(torch: ModuleType, index: int) -> Finding:
    """Return the name, memory, compute capability and bfloat16 units of a CUDA device."""
    device = torch.cuda.get_device_properties(index)
    free = torch.cuda.mem_get_info(index)[0]
    has_bf16 = device.major >= 8 or torch.version.hip is not None
    text = f"{device.name}: {gigabytes(free)} of {gigabytes(device.total_memory)} free; "
    text += f"compute capability {device.major}.{device.minor}; "
    text += "bf16" if has_bf16 else "no units for bf16"
    name = f"GPU {index}"
    if not has_bf16:
        return Finding(name, text, "caution", "Set mixed_precision to fp16 in the config.")
    if free < device.total_memory / 2:
        return Finding(name, text, "caution", "Another process uses it: see nvidia-smi.")
    return Finding(name, text)


def no_gpu(torch: ModuleType) -> Finding:
    """Return why torch finds no GPU, as far as it can be told. Runs use the CPU then."""
    version = torch.__version__
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if not driver:
        return Finding("GPU", "none; runs use the CPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        text = "none visible: CUDA_VISIBLE_DEVICES hides them"
        return Finding("GPU", text, "caution", "Unset CUDA_VISIBLE_DEVICES to use them.")
    if torch.version.cuda is None:
        text = f"an NVIDIA driver is here, but torch {version} is a build without CUDA"
        fix = "Install torch's CUDA build: https://pytorch.org/get-started/locally"
        return Finding("GPU", text, "caution", fix)
    text = f"torch {version} for CUDA {torch.version.cuda} finds none, although a driver is here"
    fix = "Compare the driver's CUDA version in nvidia-smi with torch's; update the older one."
    return Finding("GPU", text, "caution", fix)


def quantisation_kernels(torch: ModuleType) -> Finding:
    """Load bitsandbytes' native library for this device, without its Python part, which is slow."""
    name = "8 and 4 bits"
    spec = importlib.util.find_spec("bitsandbytes")
    fix = "Reinstall it: pip install --force-reinstall --no-deps bitsandbytes. Runs without "
    fix += "quantization need none."
    if spec is None or spec.origin is None:
        return Finding(name, "bitsandbytes is not installed", "caution", fix)
    backend, version = kernels_for(torch)
    libraries = sorted(Path(spec.origin).parent.glob(f"libbitsandbytes_{backend}*"))
    if not libraries:
        return Finding(name, f"bitsandbytes has no kernels for {backend}", "caution", fix)
    library = next((each for each in libraries if each.stem.endswith(version)), libraries[-1])
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return Finding(name, f"{library.name} does not load: {error}", "caution", fix)
    return Finding(name, f"bitsandbytes has kernels for this device: {library.name}")


def kernels_for(torch: ModuleType) -> tuple[str, str]:
    """Return what a library's name has for the device: toolkit and major version, whole version.

    bitsandbytes takes the library of the whole version, else one of the same major version.
    """
    if not torch.cuda.is_available():
        kind = "xpu" if torch.xpu.is_available() else "cpu"
        return kind, kind
    kind = "rocm" if torch.version.hip else "cuda"
    major, minor = (torch.version.hip or torch.version.cuda).split(".")[:2]
    return f"{kind}{major}", f"{major}{minor}"


def compiler(torch: ModuleType) -> Finding:
    """Look for what torch.compile needs: a C++ compiler, and Triton on a GPU."""
    name = "torch.compile"
    candidates = [os.environ.get("CXX", ""), "g++", "clang++"]
    found = next((each for each in candidates if each and shutil.which(each)), None)
    fix = "Install g++ (on Debian: apt install g++), or leave out --train.torch-compile."
    if found is None:
        return Finding(name, "no C++ compiler", "caution", fix)
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        return Finding(name, f"{found} is here, but not Triton", "caution", "pip install triton")
    return Finding(name, f"{found} is here")


def disks() -> Iterator[Finding]:
    """Yield the free space for the runs of this folder, and for the caches of the Hub."""
    from huggingface_hub import constants

    yield disk("runs", Path("runs").absolute(), "problem", "Change to a folder that you own.")
    fix = "Set HF_HOME to a folder with more space."
    yield disk("Hub cache", Path(constants.HF_HUB_CACHE), "caution", fix)


def disk(name: str, folder: Path, unwritable: Any, fix: str) -> Finding:
    """Return the free space of a folder, which need not exist yet, and whether it can be written.

    `unwritable` is the mark of a folder that cannot be.
    """
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        return Finding(name, f"{folder} cannot be written", unwritable, fix)
    free = free_space(folder)
    text = f"{gigabytes(free)} free in {folder}"
    if free < LEAST_FREE:
        return Finding(name, text, "caution", "Checkpoints may not fit: free some space.")
    return Finding(name, text)


def gigabytes(num_bytes: float) -> str:
    """Return a number of bytes in GB, as text."""
    return f"{num_bytes / 1e9:,.1f} GB"
