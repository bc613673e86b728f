#!/usr/bin/env bash
# The chat page of stage run-6-bloom-7b1-1.
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

need_model "$MODEL_DIR/bloom-7b1" "put BLOOM-7B1 there, in the Hugging Face form"
need_stage run-6-bloom-7b1-1

"$PYTHON" generate_bloom.py \
  --base_model "$MODEL_DIR/bloom-7b1" \
  --lora_weights "$OUTPUT_DIR/run-6-bloom-7b1-1" \
  --load_8bit "$LOAD_8BIT" \
  --is_ui True
