#!/usr/bin/env bash
# Cell tracking on DIC-HeLa, end to end. Options are passed on: --help lists them.
set -euo pipefail
root="$(CDPATH='' cd "$(dirname "$0")/.." && pwd)"
source "$root/experiments/environment.sh"
# in the user's own folder: --data, --out and UNET_REPRO_DATA may be relative
exec "$PYTHON_BIN" "$root/experiments/dic_hela.py" "$@"
