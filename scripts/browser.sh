#!/usr/bin/env bash
# Install what the tests of pages in a browser need: Chromium, and tests/browser/node_modules.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v chromium > /dev/null || {
    apt-get update --quiet
    apt-get install --yes --quiet --no-install-recommends chromium nodejs npm
}
npm ci --prefix tests/browser --no-audit --no-fund
