"""Write a GPT-2 of random weights as a checkpoint, WORK/NAME.

python scripts/benchmarks/checkpoint.py NAME DATA WORK layers=12 heads=12 width=768
"""

import os

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from variant import LITTLE, arguments, report


def main() -> None:
    """Write it; a GPU draws the weights, which takes a processor minutes for GPT-2 XL."""
    name, data, work, flags = arguments()
    sizes = {"n_layer": "layers", "n_head": "heads", "n_embd": "width"}
    sizes = {field: int(flags[flag]) for field, flag in sizes.items()}
    if LITTLE:
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": 64}
    with torch.device(os.environ["BENCHMARK_DEVICE"]):
        model = GPT2LMHeadModel(GPT2Config(**sizes))
    model.save_pretrained(work / name)
    AutoTokenizer.from_pretrained(data / "gpt2_tokenizer").save_pretrained(work / name)
    report(rate=0.0)


if __name__ == "__main__":
    main()
