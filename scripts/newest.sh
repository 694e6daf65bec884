#!/usr/bin/env bash
# Make .venv with the newest versions of the libraries that pyproject.toml gives a ceiling.
# scripts/test.sh then uses it as it is. Delete .venv to return to the tested versions.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
install ".[dev]"
# pip reports that these are above the ceilings of the project, and installs them.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
    accelerate bitsandbytes datasets evaluate huggingface_hub optuna peft torch transformers trl
.venv/bin/python -m pip list | grep -iE \
    "^(accelerate|bitsandbytes|datasets|evaluate|huggingface.hub|optuna|peft|torch|transformers|trl) "
