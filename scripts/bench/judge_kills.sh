#!/usr/bin/env bash
# judge.py ask is killed (-9) at 50 random moments against a judge on loopback: each verdict is there once at the end, and
# nothing that was on the disk is asked again. KILLS=200 bash scripts/bench/judge_kills.sh for more.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
JUDGE_KILLS="${KILLS:-50}" "${PYTHON:-.venv/bin/python}" -m pytest -q -s tests/test_judge_processes.py -k kills
