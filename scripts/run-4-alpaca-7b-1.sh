#!/usr/bin/env bash
# Experiment 4, stage 1: the hot-start 7B model learns the first part of Firefly. The result is D7b-4-1.
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

need_model "$MODEL_DIR/merge-7b-alpaca" "run scripts/merge-7b-alpaca.sh first"
need_data "$DATA_DIR/firefly/firefly-train-0.json" "convert the raw set with data/firefly/split.py"

launch finetune.py \
  --base_model "$MODEL_DIR/merge-7b-alpaca" \
  --data_path "$DATA_DIR/firefly/firefly-train-0.json" \
  --output_dir "$OUTPUT_DIR/$STAGE" \
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
  --lora_target_modules '[q_proj,v_proj]' \
  --train_on_inputs False \
  --group_by_length True
