#!/usr/bin/env bash
# Rebuild the whole folder: data, tokenizer, target, drafter, figures, model card.
# usage: run.sh [WORK_DIR] [TARGET_MINUTES] [GENERATE_MINUTES] [DRAFTER_MINUTES]     uses CUDA when present
set -euo pipefail
cd "$(dirname "$0")"
work=${1:-/tmp/tiny-mimo-work}; out=$(cd .. && pwd); py=${PYTHON:-python3}
mkdir -p "$work"; rm -f "$work"/{target,draft}.pt ../heldout/code.jsonl ../heldout/chat.jsonl
$py prepare_data.py --work "$work" --out "$out"
$py tokenizer.py --work "$work" --out "$out" | tee "$work/tokenizer.log"
$py train.py --work "$work" --minutes "${2:-120}" | tee "$work/train.log"
$py export.py --work "$work" --out "$out"
$py drafter.py --work "$work" --model "$out" --gen-minutes "${3:-10}" --minutes "${4:-30}" | tee "$work/drafter.log"
$py export.py --work "$work" --out "$out"
$py evaluate.py --work "$work" --model "$out"
$py card.py --work "$work" --out "$out"
