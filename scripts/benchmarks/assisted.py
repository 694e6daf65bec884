"""Write greedy texts one at a time: plainly, with an assistant and by prompt lookup.

    python scripts/benchmarks/assisted.py RESULT FILE [--assistant RESULT] [--lookup 4 8]

Prints tokens a second, the medians of repeats that take turns, and whether all texts are the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result")
    parser.add_argument("file", type=Path)
    parser.add_argument("--assistant")
    parser.add_argument("--lookup", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from pipelines.data.load import read_file
    from pipelines.inference.generate import load_assistance
    from pipelines.inference.loading import load_to_infer
    from pipelines.models.generation import continue_prompts
    from pipelines.tasks.generation import Generation

    loaded = load_to_infer(given.result)
    rows = read_file(given.file)
    prompts = loaded.recipe.task.prompts(rows.select(range(given.texts)), loaded.tokenizer)
    variants = {"plain": load_assistance(loaded, None, None)}
    if given.assistant:
        variants["assistant"] = load_assistance(loaded, given.assistant, None)
    variants |= {f"prompt lookup, {n}": load_assistance(loaded, None, n) for n in given.lookup}
    options = Generation(max_new_tokens=given.max_new_tokens)
    rates: dict[str, list[float]] = {name: [] for name in variants}
    texts = {}
    for repeat in range(given.repeats + 1):  # the first one warms up
        for name, assistance in variants.items():
            start = time.perf_counter()
            written = continue_prompts(
                loaded.model,
                loaded.tokenizer,
                prompts,
                options,
                batch_size=1,
                assistance=assistance,
            )
            seconds = time.perf_counter() - start
            texts[name] = [each.text for each in written]
            num_tokens = sum(len(loaded.tokenizer(text)["input_ids"]) for text in texts[name])
            if repeat:
                rates[name].append(num_tokens / seconds)
    print("| | tokens/s | against plain | same texts |\n|---|---|---|---|")
    plain = statistics.median(rates["plain"])
    for name, each in rates.items():
        rate = statistics.median(each)
        same = "yes" if texts[name] == texts["plain"] else "NO"
        print(f"| {name} | {rate:.1f} | {rate / plain:.2f} | {same} |")


if __name__ == "__main__":
    main()
