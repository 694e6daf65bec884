"""BLEU of generated texts, from 0 to 100, by the sacrebleu package."""

import warnings
from itertools import chain
from typing import Any

import sacrebleu

from pipelines.metrics import base
from pipelines.metrics.words import UNSPACED


def is_unspaced(text: str) -> bool:
    """Tell whether more than half of a text is in a script that writes no spaces."""
    return not text.isascii() and 2 * len(UNSPACED.findall(text)) > len(text)


class Sacrebleu(base.TextMetric):
    """Corpus BLEU, from 0 to 100, with sacrebleu's tokenisation and its options.

    Texts may have different numbers of references. For Chinese use `tokenize="zh"`.
    """

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        tokenize: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        if tokenize is None and any(map(is_unspaced, chain(*references))):
            warnings.warn(
                "BLEU counts a Chinese, Japanese or Thai text as one word, unless it is given "
                'tokenize="zh", "ja-mecab" or "char".',
                stacklevel=3,
            )
        most = max(map(len, references))
        # sacrebleu skips None; "" would be a reference of length 0, without a brevity penalty
        padded = [[*gold, *([None] * (most - len(gold)))] for gold in references]
        streams = [list(stream) for stream in zip(*padded, strict=True)]
        options = {"force": True} | options  # force: no warning about tokenised text
        bleu = sacrebleu.corpus_bleu(predictions, streams, tokenize=tokenize, **options)
        return {
            "score": bleu.score,
            "counts": bleu.counts,
            "totals": bleu.totals,
            "precisions": bleu.precisions,
            "bp": bleu.bp,
            "sys_len": bleu.sys_len,
            "ref_len": bleu.ref_len,
        }
