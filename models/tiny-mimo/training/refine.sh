#!/usr/bin/env bash
# Go on from the published folder within a wall-clock budget: polish the target, generate with it, train the drafter on
# that, measure, and put everything that changed into OUT_DIR as a few files (install.sh puts them back into this folder).
# usage: refine.sh WORK_DIR OUT_DIR [SECONDS, default 480]
# Environment: CORPUS (a pack made by pack_corpus.sh: no network needed), PYTHON, POLISH_FLAGS, DRAFTER_FLAGS, EVALUATE_FLAGS, LAUNCH (as of run.sh).
# Whatever cuts the run short, OUT_DIR holds the last state that was complete.
set -euo pipefail
start=$(date +%s); here=$(cd "$(dirname "$0")" && pwd)
work=${1:?WORK_DIR}; out=${2:?OUT_DIR}; budget=${3:-480}; py=${PYTHON:-python3}; mkdir -p "$work" "$out"; work=$(cd "$work" && pwd); out=$(cd "$out" && pwd)
corpus=${CORPUS:+$(realpath "$CORPUS")}; cd "$here"
export PYTHONUNBUFFERED=1 PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True TORCHINDUCTOR_CACHE_DIR=$work/inductor
exec > >(tee "$work/refine.log") 2>&1
at() { echo $((start + budget * $1 / 480)); }                           # the shares below are for 480 seconds
stage() { echo "== $(date -u +%H:%M:%S) +$(($(date +%s) - start)) s: $*"; }
limit() { local end=$1; shift; timeout -k 5 $((end > $(date +%s) ? end - $(date +%s) : 1)) "$@"; }
pack() {                                                                # model folder -> OUT_DIR: at most 16 MiB a file
  cp "$work"/model/model-*.safetensors "$out/"; cp "$work/model/dflash/model.safetensors" "$out/dflash.safetensors"
  cp "$work/refine.log" "$work/model/training/"
  tar -C "$work/model" -czf "$out/rest.tar.gz" --exclude='model-*.safetensors' --exclude='dflash/model.safetensors' README.md config.json generation_config.json \
    tokenizer_config.json model.safetensors.index.json dflash golden training
  stage "packed: $1"
}

stage data; rm -rf "$work"/{model,polished,target.pt,draft.pt}
if [ ! -f "$work/train.npy" ]; then
  if [ -n "$corpus" ]; then $py -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2])' "$corpus" "$work"
  else cp ../tokenizer.json "$work/"; $py prepare_data.py --work "$work"; $py tokenizer.py --work "$work" --out "$(cd .. && pwd)"; fi
fi
mkdir "$work/model"; cp -r ../*.json ../*.safetensors ../README.md ../dflash ../golden ../heldout "$work/model/"; mkdir "$work/model/training"; cp figures.json licences.tsv "$work/model/training/"
cp -r "$work/model" "$work/polished"
if nvidia-smi -L > /dev/null 2>&1; then                                                # the drafter's kernels, compiled while the target trains
  limit "$(at 100)" ${LAUNCH:-$py} drafter.py --work "$work" --model "$work/model" --warm --compile-limit 90 ${DRAFTER_FLAGS:-} > "$work/warm.log" 2>&1 & warm=$!
fi

stage polish
limit "$(at 110)" $py train.py --work "$work" --init ../ --until "$(at 88)" --batch 65536 --compile-limit 40 ${POLISH_FLAGS:-} || stage "polish failed"
rm -f "$work/evaluate.log"
if [ -f "$work/target.pt" ]; then
  stage export
  if limit "$(at 130)" $py export.py --work "$work" --out "$work/polished"; then
    # The figures of the pair are taken beside the generation that follows.
    (limit "$(at 260)" $py evaluate.py --work "$work" --model "$work/polished" --only bpb ${EVALUATE_FLAGS:-} > "$work/evaluate.log" 2>&1 || true) & bpb=$!
    if $py -c 'import sys, torch; sys.exit(not torch.load(sys.argv[1], map_location="cpu")["improved"])' "$work/target.pt"; then
      stage "the polish is kept"; rm -rf "$work/model"; cp -r "$work/polished" "$work/model"
    else stage "the polish is not kept"; fi
  fi
fi
pack "target, with the drafter as it was"

stage drafter; [ -z "${warm:-}" ] || { wait "$warm" || true; cat "$work/warm.log"; }
limit "$(at 432)" ${LAUNCH:-$py} drafter.py --work "$work" --model "$work/model" --init "$here/.." --gen-until "$(at 200)" --until "$(at 416)" ${DRAFTER_FLAGS:-} || stage "drafter cut short"
[ -z "${bpb:-}" ] || { wait "$bpb" || true; cat "$work/evaluate.log"; cp "$work/polished/training/figures.json" "$work/model/training/"; }
mkdir -p "$work/drafted"; cp "$work/draft.pt" "$work/drafted/"          # without target.pt: the target in the folder stays
stage export; $py export.py --work "$work/drafted" --out "$work/model"
pack "drafter"
stage evaluate; limit "$(at 474)" $py evaluate.py --work "$work" --model "$work/model" --only rounds ${EVALUATE_FLAGS:-} || stage "evaluation cut short"
$py card.py --work "$work" --out "$work/model"
pack "all"
