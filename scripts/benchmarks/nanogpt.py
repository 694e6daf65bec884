"""nanoGPT's train.py, from a checkout, on the same text.

python scripts/benchmarks/nanogpt.py CASE DATA WORK checkout=FOLDER [compile]
"""

import contextlib
import io
import os
import pickle
import re
import runpy
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from variant import arguments, now, report

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
    "gpt2-124m-full": {"block_size": 1024, "batch_size": 16, "max_iters": 30},
}
WARMUPS = {"shakespeare": 20, "gpt2-124m-full": 5}


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

        ids = AutoTokenizer.from_pretrained(data / "gpt2_tokenizer")(text)["input_ids"]
        (target / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 50257}))
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
    options = CASES[case] | {
        "bias": True,
        "device": os.environ["BENCHMARK_DEVICE"],
        "dtype": "float32" if os.environ["BENCHMARK_DEVICE"] == "cpu" else "bfloat16",
        "dataset": "text",
        "compile": "compile" in flags,
        "gradient_accumulation_steps": 1,
        "eval_iters": 1,
        "log_interval": 1,
        "always_save_checkpoint": False,
    }
    script = (checkout / "train.py").resolve()
    sys.argv = [str(script), *(f"--{name}={value}" for name, value in options.items())]
    sys.path.insert(0, str(script.parent))
    os.chdir(folder)  # train.py reads data/ and configurator.py from there
    time.time = now  # what it times its steps by
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(script), run_name="__main__")
    times = [float(ms) for ms in re.findall(r"^iter \d+: .* time ([\d.]+)ms", out.getvalue(), re.M)]
    timed = times[WARMUPS.get(case, 1) :]
    report(rate=options["batch_size"] * 1000 / statistics.mean(timed))


if __name__ == "__main__":
    main()
