"""The machine of a benchmark: its processor or GPU, and the rate at which it multiplies matrices.

python scripts/benchmarks/machine.py machine DATA WORK
"""

import os
import platform
import re
import subprocess
import time

import torch
from variant import LITTLE, report

PEAKS = (
    ("H100 PCIe", 756e12),  # NVIDIA H100 data sheet, as the next two; half of that with sparsity
    ("H100 NVL", 835e12),
    ("H100 80GB HBM3", 989e12),  # SXM
    ("H200 NVL", 835e12),  # NVIDIA H200 data sheet
    (r"H200\b", 989e12),
    (r"A100\b", 312e12),  # NVIDIA A100 data sheet, SXM and PCIe
    ("L40S", 362e12),  # NVIDIA L40S data sheet
    (r"L4\b", 121e12),  # NVIDIA L4 data sheet, half of that with sparsity
    ("RTX 4090$", 165e12),  # NVIDIA Ada GPU architecture, appendix A: sums in fp32
    (r"T4\b", 65e12),  # NVIDIA T4 data sheet: float16, since it has no units for bfloat16
)
"""Dense 16-bit operations a second of a card, by a pattern in its name; the first that fits."""


def maker_rate(name: str) -> float | None:
    """Return the rate of a card's data sheet; None for others, and for parts of a card (MIG)."""
    if "MIG" in name:
        return None
    return next((peak for card, peak in PEAKS if re.search(rf"\b{card}", name)), None)


def best_rate(size: int, dtype: torch.dtype, device: str) -> float:
    """Return the best rate of products of size x size, in operations a second."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def cpu_rate(size: int) -> float:
    """Return the best rate of products in fp32, of MKL's and of oneDNN's."""
    rates = []
    for precision in ("ieee", "bf16"):
        torch.backends.mkldnn.matmul.fp32_precision = precision
        rates.append(best_rate(size, torch.float32, "cpu"))
    return max(rates)


def gpu() -> dict[str, object]:
    """Return name, power limit in watts and driver of the first visible GPU."""
    command = ["nvidia-smi", "--query-gpu=uuid,power.limit,driver_version"]
    found = {"card": torch.cuda.get_device_name(), "power_limit_watts": None, "driver": None}
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True
        )
    except FileNotFoundError:  # a container without it
        return found
    for line in done.stdout.splitlines():
        number, watts, driver = (each.strip() for each in line.split(","))
        if number.removeprefix("GPU-") == uuid.removeprefix("GPU-"):
            found |= {"power_limit_watts": watts, "driver": driver}
    return found


def main() -> None:
    """Report the benchmark's device, and its rate in operations a second."""
    gpus = torch.cuda.device_count()
    machine: dict[str, object] = {"torch": torch.__version__, "python": platform.python_version()}
    if os.environ["BENCHMARK_DEVICE"] == "cpu":
        machine["card"] = f"CPU, {torch.get_num_threads()} threads"
        rate, source = cpu_rate(256 if LITTLE else 2048), "measured, fp32"
    elif gpus:
        measured = best_rate(8192, torch.bfloat16, "cuda")
        machine |= gpu() | {"matrix_rate_measured": measured}
        stated = maker_rate(str(machine["card"]))
        rate, source = stated or measured, "data sheet" if stated else "measured, bfloat16"
    else:
        rate, source = 0.0, "no GPU"
    report(rate=rate, gpus=gpus, machine=machine | {"rate": rate, "rate_source": source})


if __name__ == "__main__":
    main()
