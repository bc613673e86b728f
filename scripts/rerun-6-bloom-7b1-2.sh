#!/usr/bin/env bash
# Experiment 6, stage 2: goes on with the first part of Firefly.
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

need_model "$MODEL_DIR/bloom-7b1" "put BLOOM-7B1 there, in the Hugging Face form"
need_data "$DATA_DIR/firefly/firefly-train-0.json" "convert the raw set with data/firefly/split.py"
need_stage run-6-bloom-7b1-1

launch finetune_bloom.py \
  --base_model "$MODEL_DIR/bloom-7b1" \
  --data_path "$DATA_DIR/firefly/firefly-train-0.json" \
  --output_dir "$OUTPUT_DIR/$STAGE" \
  --resume_from_checkpoint "$OUTPUT_DIR/run-6-bloom-7b1-1" \
  --load_8bit "$LOAD_8BIT" \
  --batch_size "${BATCH_SIZE:-256}" \
  --micro_batch_size "${MICRO_BATCH_SIZE:-8}" \
  --num_epochs "${NUM_EPOCHS:-3}" \
  --learning_rate "${LEARNING_RATE:-1e-4}" \
  --cutoff_len "${CUTOFF_LEN:-512}" \
  --val_set_size "${VAL_SET_SIZE:-2000}" \
  --lora_r 8 \
  --lora_alpha 16 \
  --lora_dropout 0.05 \
  --lora_target_modules '[query_key_value]' \
  --train_on_inputs False \
  --group_by_length True
