#!/usr/bin/env bash
# The EM challenge, end to end. Options are passed on: --help lists them.
set -euo pipefail
cd "$(dirname "$0")/.."
source experiments/environment.sh
exec python experiments/em_challenge.py "$@"
