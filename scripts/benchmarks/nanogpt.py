"""nanoGPT's train.py, from a checkout, on the same text.

python scripts/benchmarks/nanogpt.py CASE DATA WORK checkout=FOLDER [compile]
"""

import contextlib
import io
import os
import pickle
import re
import runpy
import sys
from pathlib import Path

import numpy as np
from variant import LITTLE, arguments, now, report

CASES = {
    "shakespeare": {
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 64,
        "batch_size": 12,
        "max_iters": 220,
    },
    "gpt2-124m": {"block_size": 256, "batch_size": 2, "max_iters": 6},
    "gpt2-124m-full": {"block_size": 1024, "batch_size": 16, "max_iters": 25},
}
IN_LITTLE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "batch_size": 2}
WARMUPS = {"shakespeare": 20, "gpt2-124m-full": 5}
"""Iterations that are not timed, and after how many a line is printed, which waits for the GPU."""


class Lines(io.StringIO):
    """What train.py prints, with the time at which each iteration was told."""

    def __init__(self):
        super().__init__()
        self.told: list[tuple[int, float]] = []

    def write(self, text: str) -> int:
        if found := re.match(r"iter (\d+):", text):
            self.told.append((int(found[1]), now()))
        return super().write(text)

    def iterations_per_second(self, num_warmup: int) -> float:
        """Return the rate from the first line after the warm-up to the last."""
        timed = [(number, seconds) for number, seconds in self.told if number >= num_warmup]
        (first, start), (last, end) = timed[0], timed[-1]
        return (last - first) / (end - start)


def prepare(case: str, data: Path, folder: Path) -> None:
    """Write the binary files that train.py reads, below `folder`."""
    text = (data / "shakespeare/input.txt").read_text()[:200_000]
    target = folder / "data" / "text"
    target.mkdir(parents=True, exist_ok=True)
    if case == "shakespeare":
        characters = sorted(set(text))
        ids = [characters.index(c) for c in text]
        (target / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(characters)}))
    else:
        from transformers import AutoTokenizer

        # Without meta.pkl its vocabulary is its default, 50,304: GPT-2's, rounded up for speed
        ids = AutoTokenizer.from_pretrained(data / "gpt2_tokenizer")(text)["input_ids"]
    for name in ("train", "val"):
        np.array(ids, dtype=np.uint16).tofile(target / f"{name}.bin")


def main() -> None:
    """Run a case and report its rate."""
    case, data, work, flags = arguments()
    checkout = Path(flags["checkout"])
    folder = work / f"nanogpt-{case}"
    prepare(case, data, folder)
    configurator = folder / "configurator.py"
    configurator.write_bytes((checkout / "configurator.py").read_bytes())
    num_warmup = WARMUPS.get(case, 1)
    options = (
        CASES[case]
        | (IN_LITTLE if LITTLE else {})
        | {
            "bias": True,
            "device": os.environ["BENCHMARK_DEVICE"],
            "dtype": "float32" if os.environ["BENCHMARK_DEVICE"] == "cpu" else "bfloat16",
            "dataset": "text",
            "compile": "compile" in flags,
            "gradient_accumulation_steps": 1,
            "eval_iters": 1,
            "log_interval": num_warmup,
            "always_save_checkpoint": False,
        }
    )
    script = (checkout / "train.py").resolve()
    sys.argv = [str(script), *(f"--{name}={value}" for name, value in options.items())]
    sys.path.insert(0, str(script.parent))
    os.chdir(folder)  # train.py reads data/ and configurator.py from there
    with contextlib.redirect_stdout(Lines()) as out:
        runpy.run_path(str(script), run_name="__main__")
    report(rate=options["batch_size"] * out.iterations_per_second(num_warmup))


if __name__ == "__main__":
    main()
