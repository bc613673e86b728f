#!/usr/bin/env bash
# The whole test suite, on a machine where nothing is installed but Python: bash scripts/test.sh [pytest's arguments]
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

export HF_HUB_OFFLINE=1
"$PYTHON" -m ruff check .
"$PYTHON" -m pytest -q -n 2 --dist loadfile "$@"
