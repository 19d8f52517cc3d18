#!/usr/bin/env bash
# Tests and benchmarks for a GPU, in parts of a few minutes each:  bash tests/benchmarks/gpu.sh DATA OUT [part ...]
# DATA contains isbi2012/ and drive/; JSON files and models are written to OUT. MINUTES: length of a training run
# (default 8). Needs the dependencies of `pip install '.[train,serve]'`, pytest, pytest-timeout and httpx.
set -euo pipefail
data=$(realpath "$1") && mkdir -p "$2" && out=$(realpath "$2")
shift 2
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

gpu_tests() { python3 -m pytest -m gpu $(grep -l mark.gpu tests/test_*.py); }

train_isbi() { train isbi2012 0.17; }
train_drive() { train drive 0.2; }
train() {
  python3 -m trainer --data "$data/$1" --device cuda --max-minutes "${MINUTES:-8}" --epochs 2000 \
    --val-split contiguous --val-fraction "$2" --out "$out/$1"
  python3 tests/benchmarks/accuracy.py "$out/$1/best_model.pth" "$data/$1" --last 4 --json "$out/accuracy-$1-gpu.json"
}

steps() {
  python3 tests/benchmarks/training.py "$data/isbi2012" --json "$out/training-base64-gpu.json"
  python3 tests/benchmarks/training.py "$data/isbi2012" --image-size 256 --batch-size 4 --steps 200 \
    --json "$out/training-default-gpu.json"
}

# these measure the model that train_isbi has trained
model() { measure model model; }
serving() {
  local often="serving --seconds 1 --clients 1 32 128 200"
  measure serving $often
  for n in 6 8; do measure "serving-$n-workers" $often --workers "$n"; done
}
large() { measure large large --whole 3072; }  # several tiles
measure() {
  python3 "tests/benchmarks/$2.py" "$out/isbi2012/best_model.pth" "$data/isbi2012" --json "$out/$1-base64-gpu.json" "${@:3}"
}

for part in "${@:-gpu_tests steps train_isbi model serving large train_drive}"; do
  for each in $part; do
    echo "== $each"
    "$each"
  done
done
