"""Recipes that pretrain and fine-tune GPT-2-style models."""

from logging import ERROR, NOTSET, getLogger

# bitsandbytes warns, at import, of kernels that are not installed, and at each 8-bit layer of the
# rounding that it is there for. A level that the program has set stays.
if getLogger("bitsandbytes").level == NOTSET:
    getLogger("bitsandbytes").setLevel(ERROR)
