"""The rate at which the machine multiplies matrices, and how many GPUs it has.

python scripts/benchmarks/machine.py machine DATA WORK
"""

import os
import time

import torch
from variant import report

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 operations a second, of the makers' data sheets."""


def cpu_rate() -> float:
    """Return the best rate of 20 products of 2048 x 2048 in fp32, of MKL's and of oneDNN's."""
    a, b = torch.randn(2, 2048, 2048)
    best = float("inf")
    for precision in ("ieee", "bf16"):
        torch.backends.mkldnn.matmul.fp32_precision = precision
        for _ in range(10):
            start = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def main() -> None:
    """Report the rate of the benchmark's device, in operations a second."""
    gpus = torch.cuda.device_count()
    rate = cpu_rate()
    if os.environ["BENCHMARK_DEVICE"] == "cuda" and gpus:
        name = torch.cuda.get_device_name()
        rate = next((peak for card, peak in PEAKS.items() if card in name), 0.0)
    report(rate=rate, gpus=gpus)


if __name__ == "__main__":
    main()
