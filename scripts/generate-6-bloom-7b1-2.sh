#!/usr/bin/env bash
# The chat page of stage rerun-6-bloom-7b1-2.
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

need_model "$MODEL_DIR/bloom-7b1" "put BLOOM-7B1 there, in the Hugging Face form"
need_stage rerun-6-bloom-7b1-2

"$PYTHON" generate_bloom.py \
  --base_model "$MODEL_DIR/bloom-7b1" \
  --lora_weights "$OUTPUT_DIR/rerun-6-bloom-7b1-2" \
  --load_8bit "$LOAD_8BIT" \
  --is_ui True
