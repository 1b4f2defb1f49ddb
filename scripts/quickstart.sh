#!/usr/bin/env bash
# Trains a small encoder on the embedded set of shapes, scores it beside raw pixels and the untrained encoder, and writes
# a page about it. Some five minutes on two CPU cores. Further arguments go to `contrastneg pretrain`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
cd "$root"
exec contrastneg pretrain shapes --config configs/shapes/quickstart.yaml "$@"
