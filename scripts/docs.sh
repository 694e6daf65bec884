#!/usr/bin/env bash
# Build the documentation as a site in site/; arguments go to mkdocs.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
install ".[docs]"
export NO_MKDOCS_2_WARNING=1
exec .venv/bin/python -m mkdocs build --strict "$@"
