#!/usr/bin/env bash
# Step time against the inference floor on this machine's CPU: writes benchmarks/results/profile-cpu-*.json.
# Run it on an otherwise idle machine; a second process changes every ratio.
set -euo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/results
for model in gemma-3-270m smollm2-135m; do
  for what in "full mezo" "full lozo" "lora mezo"; do
    read -r scheme method <<<"$what"
    gradless profile --model "$model" --scheme "$scheme" --method "$method" --batch-size 16 --length 40 \
      --repeats "${REPEATS:-9}" --replay-steps "${REPLAY_STEPS:-200}" \
      --json "$out/profile-cpu-$model-$scheme-$method.json" --picture "docs/profile-$model-$scheme-$method.png"
  done
done
python benchmarks/choose_engine.py
