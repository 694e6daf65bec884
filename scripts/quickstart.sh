#!/usr/bin/env bash
# Pretrain, classify and answer on this machine's CPU, from nothing to a table of results.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
install .
exec .venv/bin/python scripts/quickstart.py
