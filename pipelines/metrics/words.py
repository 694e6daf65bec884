"""The words of a text in any script, for ROUGE."""

from __future__ import annotations

import re
import unicodedata

from rouge_score.tokenizers import DefaultTokenizer

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao; Burmese; Khmer
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Japanese, Chinese
    "\U00020000-\U0003ffff]"
)
"""Characters of scripts that write no spaces between words."""
ASCII = DefaultTokenizer()


def split(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation.

    ASCII text is split by rouge_score's default tokenizer, which would drop all other letters: a
    Chinese text would have no words, and "füllt" would equal "fällt". Here words consist of letters
    of any script, and each character of a script without spaces is a word.
    """
    if text.isascii():
        words: list[str] = ASCII.tokenize(text)
        return words
    letters = []
    for c in unicodedata.normalize("NFC", text).lower():
        if UNSPACED.match(c):
            letters.append(f" {c} ")
        else:
            letters.append(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " ")
    return "".join(letters).split()
