#!/usr/bin/env bash
# Experiment 3: D13b-2-3 goes on with the second part of Firefly. The result is D13b-3-3.
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

need_model "$MODEL_DIR/merge-13b-alpaca" "run scripts/merge-13b-alpaca.sh first"
need_data "$DATA_DIR/firefly/firefly-train-1.json" "convert the raw set with data/firefly/split.py"
need_stage rerun-2-alpaca-13b-3

launch finetune.py \
  --base_model "$MODEL_DIR/merge-13b-alpaca" \
  --data_path "$DATA_DIR/firefly/firefly-train-1.json" \
  --output_dir "$OUTPUT_DIR/$STAGE" \
  --resume_from_checkpoint "$OUTPUT_DIR/rerun-2-alpaca-13b-3" \
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
