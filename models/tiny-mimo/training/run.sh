#!/usr/bin/env bash
# Rebuild the whole folder: data, tokenizer, target, drafter, figures, model card. Uses CUDA when present.
# usage: run.sh [WORK_DIR] [TARGET_MINUTES] [GENERATE_MINUTES] [DRAFTER_MINUTES]
# Environment: OUT (a model folder elsewhere than this one), PYTHON, TRAIN_FLAGS, DRAFTER_FLAGS, EVALUATE_FLAGS, LAUNCH (what starts
# drafter.py: "torchrun --nproc-per-node=N" trains the drafter on N GPUs).
# A train.json already in WORK_DIR is used as it is; so is a tokenizer.json.
set -euo pipefail
cd "$(dirname "$0")"
work=${1:-/tmp/tiny-mimo-work}; py=${PYTHON:-python3}; export PYTHONUNBUFFERED=1 PYTHONHASHSEED=0 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
stage() { echo "== $(date -u +%H:%M:%S) $*"; }
mkdir -p "$work" "${OUT:=$PWD/..}"; out=$(cd "$OUT" && pwd)
if [ "$out" != "$(cd .. && pwd)" ]; then mkdir -p "$out/training"; cp -r ../heldout "$out/"; fi
rm -f "$work"/{target,draft}.pt
stage data;      [ -f "$work/train.json" ] || $py prepare_data.py --work "$work"
stage tokenizer; $py tokenizer.py --work "$work" --out "$out"
stage target;    $py train.py --work "$work" --minutes "${2:-120}" ${TRAIN_FLAGS:-} 2>&1 | tee "$work/train.log"
stage export;    $py export.py --work "$work" --out "$out"
stage drafter;   ${LAUNCH:-$py} drafter.py --work "$work" --model "$out" --gen-minutes "${3:-10}" --minutes "${4:-30}" ${DRAFTER_FLAGS:-} 2>&1 | tee "$work/drafter.log"
stage export;    $py export.py --work "$work" --out "$out"
stage card;      $py card.py --work "$work" --out "$out"      # a card without figures, should the next stage be cut short
stage evaluate;  $py evaluate.py --work "$work" --model "$out" ${EVALUATE_FLAGS:-}
stage card;      $py card.py --work "$work" --out "$out"
stage finished
