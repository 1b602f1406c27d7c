#!/usr/bin/env bash
# Put the files of refine.sh into this model folder.
# usage: install.sh FILES_DIR
set -euo pipefail
from=$(cd "${1:?FILES_DIR}" && pwd); cd "$(dirname "$0")/.."
for f in "$from"/model-*.safetensors; do cp "$f" .; done
cp "$from/dflash.safetensors" dflash/model.safetensors
tar -xzf "$from/rest.tar.gz" --no-same-owner --exclude='*.log'
chmod 644 *.safetensors dflash/*
