#!/usr/bin/env bash
# All that a GPU is for, in calls of at most nine minutes: call it until it says that all is done.
# --list says what it does; --help lists the options.
set -euo pipefail
root="$(CDPATH='' cd "$(dirname "$0")/.." && pwd)"
source "$root/experiments/environment.sh"
# in the user's own folder: --out and UNET_REPRO_DATA may be relative
exec "$PYTHON_BIN" "$root/experiments/gpu.py" "$@"
