"""Losses and their gradients by a language model's head: 2,048 tokens, 768 wide, GPT-2's words.

python scripts/benchmarks/loss.py loss DATA WORK [automatic] [whole] [torch]

`automatic` and `torch` are torch's own loss (2.13 and later), with its chunks and with ours.
"""

import torch
import torch.nn.functional as F
from variant import arguments, now, report

from pipelines.models.chunked_loss import chunked_losses
from pipelines.models.linear_cross_entropy import CHUNK
from pipelines.process import prepare_process

TOKENS, WIDTH, VOCABULARY = 2048, 768, 50257
WARMUPS, STEPS = 4, 8


def main() -> None:
    """Report losses of so many tokens a second, the first few left out."""
    *_, flags = arguments()
    with prepare_process():
        measure(flags)


def measure(flags: dict[str, str]) -> None:
    """Report it in a process that is set up to compute."""
    torch.manual_seed(0)
    hidden = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    labels = torch.randint(0, VOCABULARY, (1, TOKENS))
    if "whole" in flags:
        CHUNK["cpu"] = 2**62

    def step() -> None:
        if {"automatic", "torch"} & set(flags):
            size = None if "automatic" in flags else CHUNK["cpu"] // VOCABULARY
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=size)
            rows = hidden.flatten(0, 1)
            loss = F.linear_cross_entropy(rows, head.weight, labels.flatten(), options=options)
        else:
            loss = chunked_losses(hidden, head, labels)
        loss.backward()
        hidden.grad = head.weight.grad = None

    for _ in range(WARMUPS):
        step()
    start = now()
    for _ in range(STEPS):
        step()
    report(rate=STEPS / (now() - start))


if __name__ == "__main__":
    main()
