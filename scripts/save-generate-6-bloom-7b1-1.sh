#!/usr/bin/env bash
# Stage run-6-bloom-7b1-1 answers the prompts of TEST_INPUT into test.json in its own folder.
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

need_model "$MODEL_DIR/bloom-7b1" "put BLOOM-7B1 there, in the Hugging Face form"
need_stage run-6-bloom-7b1-1
need_data "$TEST_INPUT" "name your prompts in TEST_INPUT"

launch generate_bloom.py \
  --base_model "$MODEL_DIR/bloom-7b1" \
  --lora_weights "$OUTPUT_DIR/run-6-bloom-7b1-1" \
  --load_8bit "$LOAD_8BIT" \
  --is_ui False \
  --test_input_path "$TEST_INPUT" \
  --max_new_tokens "${MAX_NEW_TOKENS:-512}" \
  --overwrite "${OVERWRITE:-False}"
