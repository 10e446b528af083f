#!/usr/bin/env bash
# Step time against the inference floor on this machine's CPU: writes benchmarks/results/profile-cpu-*.json.
# Run it on an otherwise idle machine; a second process changes every ratio.
set -euo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/results
for model in gemma-3-270m smollm2-135m; do
  for what in "full mezo --engine in-place --replay-steps 20000" "full lozo --no-eager --no-memory" "lora mezo --no-memory"; do
    read -r scheme method more <<<"$what"
    # shellcheck disable=SC2086
    gradless profile --model "$model" --dtype float32 --scheme "$scheme" --method "$method" --batch-size 16 --length 40 \
      --engine stream --engine dual --repeats "${REPEATS:-7}" $more \
      --json "$out/profile-cpu-$model-$scheme-$method.json" --picture "docs/figures/profile-$model-$scheme-$method.png"
  done
done
