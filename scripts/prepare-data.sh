#!/usr/bin/env bash
# Converts the raw sets that lie under DATA_DIR/raw (the layout stands in data/README.md), and says which are missing.
#
#   bash scripts/prepare-data.sh              what is there
#   bash scripts/prepare-data.sh --download   after fetching what the Hugging Face Hub may hand out (never PsyQA)
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

RAW="$DATA_DIR/raw"
DOWNLOAD=no
for argument; do
  case "$argument" in
    --download) DOWNLOAD=yes ;;
    *) fail 2 "unknown argument $argument (there is --download alone)" ;;
  esac
done

COIG=(
  human_value_alignment_instructions_part1.json human_value_alignment_instructions_part2.json
  exam_instructions.jsonl translated_instructions.jsonl leetcode_instructions.jsonl
  counterfactural_correction_multi_round_chat.tar.gz
)
HUB="on the Hub: --download fetches it"
BAIZE="github.com/project-baize/baize-chatbot, folder data"

converted=0
missing=0

# lacks FILE WHERE: the raw file is not there; says where it is had.
lacks() {
  [ ! -e "$RAW/$1" ] || return 1
  printf 'missing: %s (%s)\n' "$RAW/$1" "$2"
  missing=$((missing + 1))
}

# prepare SET: through its converter; a converter that fails stops all.
prepare() {
  "$PYTHON" "data/$1/split.py" --input "$RAW/$1" --output_dir "$DATA_DIR/$1" ||
    fail $? "stopped: $RAW/$1 could not be converted"
  converted=$((converted + 1))
}

# has_any FILE...: one of them is there (with PYTHON=echo all are taken to be).
has_any() {
  local file
  for file; do [ "$PYTHON" != echo ] && [ ! -e "$RAW/$file" ] || return 0; done
  return 1
}

if [ "$DOWNLOAD" = yes ]; then "$PYTHON" scripts/fetch_data.py --raw_dir "$RAW" || fail $? "stopped: nothing converted"; fi

if [ "$PYTHON" != echo ]; then
  lacks firefly/firefly-train-1.1M.jsonl "YeungNLP/firefly-train-1.1M $HUB" || true
  for file in "${COIG[@]}"; do lacks "COIG/$file" "BAAI/COIG $HUB" || true; done
  lacks psyQA/PsyQA_full.json "github.com/thu-coai/PsyQA, on its user agreement; never fetched" || true
  lacks belle/Belle_open_source_0.5M.json "BelleGroup/train_0.5M_CN $HUB" || true
  for topic in alpaca medical quora stackoverflow; do lacks "baize/${topic}_chat_data.json" "$BAIZE" || true; done
  [ -e "$RAW/couplets/in.txt" ] || for half in train test; do
    lacks "couplets/$half/in.txt" "github.com/v-zich/couplet-clean-dataset, with out.txt beside it" || true
  done
  lacks alpaca-gpt4/alpaca_gpt4_data.json "github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM, folder data" || true
fi

has_any firefly/firefly-train-1.1M.jsonl && prepare firefly
has_any "${COIG[@]/#/COIG/}" && prepare COIG
has_any psyQA/PsyQA_full.json && prepare psyQA
has_any belle/Belle_open_source_0.5M.json && prepare belle
has_any baize/{alpaca,medical,quora,stackoverflow}_chat_data.json && prepare baize
has_any couplets/in.txt couplets/{train,test}/in.txt && prepare couplets
has_any alpaca-gpt4/alpaca_gpt4_data.json && prepare alpaca-gpt4

[ "$PYTHON" = echo ] || [ "$converted" -gt 0 ] || fail 3 "no raw set lies under $RAW"
[ "$PYTHON" = echo ] || printf '%s sets converted into %s, %s raw files missing\n' "$converted" "$DATA_DIR" "$missing"
