#!/usr/bin/env bash
# Three seeds of full-parameter and LoRA MeZO on SST-2, one after the other; safe to interrupt and start again.
# Usage: benchmarks/sst2.sh DATA_DIR [OUT_DIR]      (DATA_DIR: GLUE's SST-2 folder with train.tsv and dev.tsv)
# Then:  python benchmarks/collect.py OUT_DIR benchmarks/results/sst2-gemma-3-270m.json
# The committed runs were made with the engine "stream"; another engine differs in last bits of losses, hence in weights.
set -euo pipefail
data=$1
out=${2:-runs/sst2}
for seed in 0 1 2; do
  for setting in "full 3e-6 1e-3" "lora 6e-4 1e-2"; do
    read -r scheme lr eps <<<"$setting"
    gradless tune --model gemma-3-270m --dtype float32 --task sst2 --data "$data" --method mezo --scheme "$scheme" \
      --steps 100 --batch-size 16 --lr "$lr" --eps "$eps" --seed "$seed" \
      --engine stream --num-train 1000 --num-dev 256 --num-test 872 --out "$out/$scheme$seed" --resume
  done
done
for mode in zero-shot calibrated probe; do
  gradless eval --model gemma-3-270m --dtype float32 --task sst2 --data "$data" --num-train 1000 --num-dev 256 --num-test 872 \
    --mode "$mode" --out "$out/eval-$mode"
done
