"""Measure the memory of a new process; print one number.

python tests/helpers/memory.py page-faults {True,False}
python tests/helpers/memory.py new-shapes
python tests/helpers/memory.py loading SMALL LARGE {Int8,NF4}
"""

import re
import resource
import sys
from pathlib import Path

import torch

from pipelines.data.source import DatasetSource
from pipelines.models.build import load_base
from pipelines.models.tokenizers import load_tokenizer
from pipelines.process import prepare_process
from pipelines.recipe.values import NF4, Int8, Model
from pipelines.tasks.causal_lm import CausalLM


def page_faults(prepared: str) -> int:
    """Return the fewest page faults of a tensor as large as one that was freed before."""
    if prepared == "True":
        prepare_process().__enter__()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    return min(faults() for _ in range(12))


def status_of_process(field: str) -> int:
    """Return a field of /proc/self/status in kB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def new_shapes() -> int:
    """Return the resident kB that products of matrices of ever new shapes leave behind."""
    prepare_process().__enter__()
    rows, weights = torch.randn(1000, 64), torch.randn(64, 64)
    rows @ weights
    before = status_of_process("VmRSS")
    for number in range(1, 1000):
        rows[:number] @ weights
    return status_of_process("VmRSS") - before


def loading(small: str, large: str, kind: str) -> int:
    """Return the kB of the peak that loading a large quantised base adds to that of a small one.

    getrusage's peak would begin with that of the process that forked this one.
    """

    def load(folder: str):
        model = Model(name_or_path=folder)
        task = CausalLM(dataset=DatasetSource(path="rows.jsonl"), block_size=8)
        tokenizer = load_tokenizer(model, [], max_length=8)
        quantization = {"Int8": Int8, "NF4": NF4}[kind]()
        return load_base(task, model, (), quantization=quantization, tokenizer=tokenizer)

    load(small)
    before = status_of_process("VmHWM")
    base = load(large)
    peak = status_of_process("VmHWM")
    del base
    return peak - before


if __name__ == "__main__":
    measure = {"page-faults": page_faults, "new-shapes": new_shapes, "loading": loading}
    print(measure[sys.argv[1]](*sys.argv[2:]))
