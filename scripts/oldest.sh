#!/usr/bin/env bash
# Make .venv with the oldest torch that pyproject.toml allows; the other libraries as tested.
# On Linux also Liger's kernels, which Triton's interpreter tests on a CPU; it needs NumPy before 2.4.
# scripts/test.sh then uses it as it is. Delete .venv to return to the tested version.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
floor=$(sed -n 's/^ *"torch>=\([0-9.]*\),.*/\1/p' pyproject.toml)
{ grep -vE '^(torch|numpy)==' constraints.txt; echo "torch==$floor.*"; echo "numpy<2.4"; } \
    > .venv/constraints.txt
extras=dev
[ "$(uname)" != Linux ] || extras=dev,gpu
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    -c .venv/constraints.txt -e ".[$extras]"
touch .venv/installed--dev- .venv/installed-
.venv/bin/python -m pip list | grep -iE "^torch "
