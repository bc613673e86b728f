#!/usr/bin/env bash
# Stage rerun-5-alpaca-7b-1 answers the prompts of TEST_INPUT into test.json in its own folder.
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

need_model "$MODEL_DIR/merge-7b-alpaca" "run scripts/merge-7b-alpaca.sh first"
need_stage rerun-5-alpaca-7b-1
need_data "$TEST_INPUT" "name your prompts in TEST_INPUT"

launch generate.py \
  --base_model "$MODEL_DIR/merge-7b-alpaca" \
  --lora_weights "$OUTPUT_DIR/rerun-5-alpaca-7b-1" \
  --load_8bit "$LOAD_8BIT" \
  --is_ui False \
  --test_input_path "$TEST_INPUT" \
  --max_new_tokens "${MAX_NEW_TOKENS:-512}" \
  --overwrite "${OVERWRITE:-False}"
