#!/usr/bin/env bash
# Install what the tests of pages in a browser need: Chromium, and tests/browser/node_modules.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
command -v chromium > /dev/null || missing+=(chromium)
command -v npm > /dev/null || missing+=(nodejs npm) # NodeSource's nodejs conflicts with Debian's npm
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update --quiet
    apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
fi
npm ci --prefix tests/browser --no-audit --no-fund
