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

HUB="on the Hub: --download fetches it"
BAIZE="github.com/project-baize/baize-chatbot, folder data"
COUPLETS="github.com/v-zich/couplet-clean-dataset, with out.txt beside it"
# SET/FILE, and where it is had. A set is converted where one of its files is there.
FILES="\
firefly/firefly-train-1.1M.jsonl YeungNLP/firefly-train-1.1M $HUB
COIG/human_value_alignment_instructions_part1.json BAAI/COIG $HUB
COIG/human_value_alignment_instructions_part2.json BAAI/COIG $HUB
COIG/exam_instructions.jsonl BAAI/COIG $HUB
COIG/translated_instructions.jsonl BAAI/COIG $HUB
COIG/leetcode_instructions.jsonl BAAI/COIG $HUB
COIG/counterfactural_correction_multi_round_chat.tar.gz BAAI/COIG $HUB
psyQA/PsyQA_full.json github.com/thu-coai/PsyQA, on its user agreement; never fetched
belle/Belle_open_source_0.5M.json BelleGroup/train_0.5M_CN $HUB
baize/alpaca_chat_data.json $BAIZE
baize/medical_chat_data.json $BAIZE
baize/quora_chat_data.json $BAIZE
baize/stackoverflow_chat_data.json $BAIZE
couplets/train/in.txt $COUPLETS
couplets/test/in.txt $COUPLETS
alpaca-gpt4/alpaca_gpt4_data.json github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM, folder data"
# Couplets may lie there without the two halves.
[ ! -e "$RAW/couplets/in.txt" ] || FILES="$(sed '\|^couplets/test|d; s|^couplets/train|couplets|' <<<"$FILES")"

if [ "$DOWNLOAD" = yes ]; then "$PYTHON" scripts/fetch_data.py --raw_dir "$RAW" || fail $? "stopped: nothing converted"; fi

sets=""
missing=0
while read -r file where; do
  if [ "$PYTHON" = echo ] || [ -e "$RAW/$file" ]; then
    sets+="${file%%/*}"$'\n'
  else
    printf 'missing: %s (%s)\n' "$RAW/$file" "$where"
    missing=$((missing + 1))
  fi
done <<<"$FILES"

converted=0
for set in $(uniq <<<"$sets"); do
  "$PYTHON" "data/$set/split.py" --input "$RAW/$set" --output_dir "$DATA_DIR/$set" ||
    fail $? "stopped: $RAW/$set could not be converted"
  converted=$((converted + 1))
done

[ "$converted" -gt 0 ] || fail 3 "no raw set lies under $RAW"
[ "$PYTHON" = echo ] || printf '%s sets converted into %s, %s raw files missing\n' "$converted" "$DATA_DIR" "$missing"
