# shellcheck shell=bash
# Sourced by the other scripts: make .venv and install the project into it, once.

install() { # install "." or ".[dev]"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    local stamp=".venv/installed${1//[.\[\]]/-}"
    if [ ! "$stamp" -nt pyproject.toml ] || [ ! "$stamp" -nt constraints.txt ]; then
        echo "Installing into .venv ..."
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            -c constraints.txt -e "$1"
        touch "$stamp"
    fi
}
