#!/usr/bin/env bash
# All checks: ruff, mypy, the default test suite. Options are passed on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS=test
source experiments/environment.sh
if [ -z "${UNET_REPRO_DATA:-}" ]; then
    echo "UNET_REPRO_DATA is not set: tests on real data are skipped"
fi
ruff check .
ruff format --check .
mypy
exec pytest "$@"
