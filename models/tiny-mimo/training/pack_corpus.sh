#!/usr/bin/env bash
# Encode the training text and pack it for refine.sh on a machine without a network.
# usage: pack_corpus.sh WORK_DIR OUT.tar.xz [MB per distribution of round 1, default 1]
set -euo pipefail
work=$(mkdir -p "${1:?WORK_DIR}" && cd "$1" && pwd); mkdir -p "$(dirname "${2:?OUT.tar.xz}")"; out=$(realpath "$2"); py=${PYTHON:-python3}; cd "$(dirname "$0")"
cp ../tokenizer.json "$work/"
[ -f "$work/train.json" ] || $py prepare_data.py --work "$work" --cap-first-mb "${3:-1}"
$py tokenizer.py --work "$work" --out "$(cd .. && pwd)"
tar -C "$work" --sort=name --owner=0 --group=0 -cf - {train,chat,heldout}{,_off}.npy | xz --lzma2=preset=9e,dict=96MiB -c > "$out"
ls -l "$out"
