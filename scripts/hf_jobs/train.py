# /// script
# requires-python = ">=3.11"
# dependencies = ["gpt2-recipes"]
#
# [tool.uv]
# find-links = ["/wheels"]
#
# [tool.hf-jobs]
# flavor = "l4x1"
# timeout = "4h"
# volumes = ["./dist:/wheels"]
# ///
"""Run a recipe on the GPUs of a Hugging Face Job, and publish the result (docs/clusters.md).

    pip wheel --no-deps --wheel-dir dist .
    hf jobs uv run --secrets HF_TOKEN scripts/hf_jobs/train.py RECIPE --push-to USER/NAME

RECIPE is a shipped name or a file of yours, whose data is on the Hub. The wheel in dist/ goes with
the job. `--flavor`, `--timeout` and others of `hf jobs uv run` overrule the values above.
"""

import sys

from pipelines.cli import console

KEEPS = ("--push-to", "--push_to", "--output-dir", "--output_dir")


def main(arguments: list[str]) -> None:
    """Run `gpt2-recipes run` with the arguments, and end with its exit code."""
    asks_for_help = {"-h", "--help"} & {*arguments}
    if not asks_for_help and not any(each.split("=")[0] in KEEPS for each in arguments):
        print("The machine of a job is deleted at its end, and the result with it. Give --push-to")
        print("USER/NAME, or --output-dir with a folder of a volume.", flush=True)
        raise SystemExit(2)
    sys.argv = ["gpt2-recipes", "run", *arguments]
    console()


if __name__ == "__main__":
    main(sys.argv[1:])
