#!/usr/bin/env bash
# All checks: ruff, mypy, the default test suite in two processes. Options are passed on to pytest.
set -euo pipefail
root="$(CDPATH='' cd "$(dirname "$0")/.." && pwd)"
cd "$root"
EXTRAS=test
source "$root/experiments/environment.sh"
if [ -z "${UNET_REPRO_DATA:-}" ]; then
    echo "UNET_REPRO_DATA is not set: tests on real data are skipped"
fi
"$PYTHON_BIN" -m ruff check .
"$PYTHON_BIN" -m ruff format --check .
"$PYTHON_BIN" -m mypy
exec "$PYTHON_BIN" -m pytest -n 2 "$@"
