# shellcheck shell=bash
# Sourced by every script here: strict mode, the repository root, the settings, how a command is launched, and what a
# stage needs before it starts.
#
# Every setting can be overridden from outside: BATCH_SIZE=128 bash scripts/run-2-alpaca-13b-1.sh
# Folders are relative to the repository root. PYTHON=echo prints the commands and does nothing else.

set -euo pipefail

ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
cd -- "$ROOT"

# A path that begins with "-" would be read as a flag.
as_path() { case "$1" in -*) printf './%s' "$1" ;; *) printf '%s' "$1" ;; esac; }

MODEL_DIR="$(as_path "${MODEL_DIR:-./models}")"
DATA_DIR="$(as_path "${DATA_DIR:-./data}")"
OUTPUT_DIR="$(as_path "${OUTPUT_DIR:-./output}")"
TEST_INPUT="$(as_path "${TEST_INPUT:-./test_data/01qa.json}")"
LOAD_8BIT="${LOAD_8BIT:-True}"

# The environment that is active, else the one that demo.sh and test.sh make, else the system's Python.
if [ -z "${PYTHON:-}" ]; then
  if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then PYTHON=python
  elif [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python
  else PYTHON=python3; fi
fi

# launch SCRIPT FLAG...: in one process, or with GPUS=8 in eight.
launch() {
  case "${GPUS:-1}" in *[!0-9]* | 0) fail 2 "GPUS=$GPUS is not a number of processes" ;; esac
  if [ "${GPUS:-1}" = 1 ]; then "$PYTHON" "$@"
  else "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" "$@"; fi
}

# The script's own name is the name of its stage, and of the folder its results go to.
STAGE="$(basename -- "$0" .sh)"

fail() { printf '%s.sh: error: %s\n' "$STAGE" "$2" >&2; exit "$1"; }

# need_data FILE HOW: the stage's data is there.
need_data() { [ "$PYTHON" = echo ] || [ -f "$1" ] || fail 3 "$1 is missing: $2"; }

# need_model FOLDER HOW: the model the script starts from is there (merge_lora.py renames it into place when it is whole).
need_model() { [ "$PYTHON" = echo ] || [ -f "$1/config.json" ] || fail 4 "$1 is missing: $2"; }

# is_complete FOLDER: an adapter is there, and its run.json, if it has one, says that the run ended well.
is_complete() {
  [ -s "$1/adapter_model.safetensors" ] || [ -s "$1/adapter_model.bin" ] || return 1
  [ ! -f "$1/run.json" ] || grep -q '"status": "complete"' "$1/run.json"
}

# need_stage NAME: the stage this one continues is complete.
need_stage() {
  [ "$PYTHON" = echo ] || is_complete "$OUTPUT_DIR/$1" || fail 4 "$OUTPUT_DIR/$1 is not complete: run scripts/$1.sh first"
}

# run_all SCRIPT...: one after another, up to the first that fails. Each decides by itself whether it is complete:
# finetune.py compares settings, base and data with what it finds.
run_all() {
  local script
  for script; do
    [ "$PYTHON" = echo ] || printf '=== %s\n' "$script"
    bash "scripts/$script.sh" || fail $? "stopped: $script.sh failed; run this again to go on from there"
  done
}
