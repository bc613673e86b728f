#!/usr/bin/env bash
# Experiment 6 (BLOOM-7B1) from the published model to the answers.
# It stops at the first stage that fails; a rerun skips what is complete.
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

run_all \
  run-6-bloom-7b1-1 \
  rerun-6-bloom-7b1-2 \
  save-generate-6-bloom-7b1-2
