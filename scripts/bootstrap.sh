#!/usr/bin/env bash
# Makes the virtual environment that the other scripts use: .venv, or $CONTRASTNEG_VENV. Sourced by them; does nothing
# when the environment is up to date. Pinned versions on Linux x86-64 (requirements.lock), the newest allowed elsewhere.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${CONTRASTNEG_VENV:-$root/.venv}"
stamp="$venv/.contrastneg-$(cat "$root/pyproject.toml" "$root/requirements.lock" <(echo "$root") | cksum | cut -d' ' -f1)"

if [ ! -e "$stamp" ]; then
    python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "contrastneg needs Python 3.11 or newer; name one with PYTHON=/path/to/python" >&2
        exit 2
    }
    [ -e "$venv" ] && echo "Bringing $venv up to date with $root ..." || echo "Making $venv (a few minutes, once) ..."
    "$python" -m venv "$venv"
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    if [ "$(uname -sm)" = "Linux x86_64" ]; then
        "$venv/bin/python" -m pip install --quiet --requirement "$root/requirements.lock"
        "$venv/bin/python" -m pip install --quiet --no-deps --editable "$root"
    else
        "$venv/bin/python" -m pip install --quiet --editable "$root[dev]"
    fi
    touch "$stamp"
fi
export PATH="$venv/bin:$PATH"
