#!/usr/bin/env bash
# Linter, formatter, types and tests. Further arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
cd "$root"

# The page is tested in a real browser; without one those tests are skipped, with the reason shown.
if ! command -v chromium chromium-browser google-chrome >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    (apt-get -qq update && apt-get -qq install -y chromium >/dev/null) || echo "no browser could be installed"
fi

ruff check .
ruff format --check .
pyright
# One thread in each of as many processes as there are cores: tests are many and small.
OMP_NUM_THREADS=1 pytest --numprocesses=auto --dist=worksteal "$@"
