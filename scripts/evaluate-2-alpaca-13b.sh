#!/usr/bin/env bash
# Experiment 2 judged: each adapter of the chain answers all of TEST_DATA, a judge scores the answers, the tables follow.
#
#   OPENAI_API_KEY=… bash scripts/evaluate-2-alpaca-13b.sh
#
# JUDGE_MODEL at JUDGE_URL (any OpenAI-compatible endpoint) is the judge. JUDGE_MODE=faithful asks in the original's
# words, once a prompt.
# OTHER_ANSWERS=ChatGPT=chatgpt.json judges answers from elsewhere beside ours.
# Run again, it goes on where it was stopped. Adapters or prompts that have changed since are refused and named;
# OVERWRITE=True moves the old answers away and asks again.
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

TEST_DATA="$(as_path "${TEST_DATA:-./test_data}")"
ADAPTERS=(run-2-alpaca-13b-1 rerun-2-alpaca-13b-2 rerun-2-alpaca-13b-2-2 rerun-2-alpaca-13b-3)
SCORES="$OUTPUT_DIR/$STAGE"

need_model "$MODEL_DIR/merge-13b-alpaca" "run scripts/merge-13b-alpaca.sh first"
for adapter in "${ADAPTERS[@]}"; do need_stage "$adapter"; done

answers=""
for adapter in "${ADAPTERS[@]}"; do
  launch generate.py \
    --base_model "$MODEL_DIR/merge-13b-alpaca" \
    --lora_weights "$OUTPUT_DIR/$adapter" \
    --load_8bit "$LOAD_8BIT" \
    --is_ui False \
    --test_input_path "$TEST_DATA" \
    --output_path "$SCORES/$adapter/test.json" \
    --max_new_tokens "${MAX_NEW_TOKENS:-512}" \
    --overwrite "${OVERWRITE:-False}"
  answers="$answers,$adapter=$SCORES/$adapter/test.json"
done

# 6: some answers stay unjudged; the tables say which, and the exit code stays.
status=0
"$PYTHON" judge.py ask \
  --answers "${answers#,}${OTHER_ANSWERS:+,$OTHER_ANSWERS}" \
  --test_data "$TEST_DATA" \
  --base_url "${JUDGE_URL:-https://api.openai.com/v1}" \
  --model "${JUDGE_MODEL:-gpt-4}" \
  --mode "${JUDGE_MODE:-robust}" \
  --output_dir "$SCORES" || status=$?
[ "$status" = 0 ] || [ "$status" = 6 ] || exit "$status"
"$PYTHON" judge.py table --output_dir "$SCORES"
exit "$status"
