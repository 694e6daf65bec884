#!/usr/bin/env bash
# Make .venv with the oldest torch that pyproject.toml allows; the other libraries as tested.
# scripts/test.sh then uses it as it is. Delete .venv to return to the tested version.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
floor=$(sed -n 's/^ *"torch>=\([0-9.]*\),.*/\1/p' pyproject.toml)
{ grep -v '^torch==' constraints.txt; echo "torch==$floor.*"; } > .venv/constraints.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    -c .venv/constraints.txt -e ".[dev]"
touch .venv/installed--dev- .venv/installed-
.venv/bin/python -m pip list | grep -iE "^torch "
