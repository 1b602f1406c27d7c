#!/usr/bin/env bash
# Runs the official `openai` and `anthropic` Python SDKs against a real router and worker on loopback: streamed and plain answers, errors.
# Makes a virtual environment and fetches both from PyPI, so it is not part of `make test`.
# usage: tests/sdk/check.sh BUILD_DIR [VENV_DIR]     VENV_DIR: kept and used again; default one that is removed
set -euo pipefail
[ $# -ge 1 ] && [ $# -le 2 ] || { echo "usage: tests/sdk/check.sh BUILD_DIR [VENV_DIR]" >&2; exit 2; }
build=$(cd "$1" && pwd)
work=$(mktemp -d)
venv=${2:-$work/venv}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
pids=()
stop() {
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap stop EXIT

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check openai anthropic

# await FILE PID
await() {
  for _ in $(seq 600); do
    [ -s "$1" ] && return
    kill -0 "$2" 2>/dev/null || break
    sleep 0.1
  done
  echo "sdk check: no $1" >&2
  exit 1
}
field() { sed -n "s/.*\"$2\":\([0-9]*\).*/\1/p" "$1"; }

"$build/bin/ultraspeed-worker" --model=models/tiny-mimo --listen=127.0.0.1:0 --ready-file="$work/worker.json" >"$work/worker.log" 2>&1 &
pids+=($!)
await "$work/worker.json" "${pids[-1]}"
(umask 077 && echo "a pepper for the sdk check" >"$work/pepper")
(umask 077 && "$build/bin/ultraspeed-router" new-key --pepper-file="$work/pepper" >"$work/keys" 2>"$work/key")
"$build/bin/ultraspeed-router" --listen=127.0.0.1:0 --http-listen=127.0.0.1:0 --worker="127.0.0.1:$(field "$work/worker.json" port)" \
  --api-keys="$work/keys" --pepper-file="$work/pepper" --ready-file="$work/router.json" >"$work/router.log" 2>&1 &
pids=("$!" "${pids[@]}")  # the router ends first
await "$work/router.json" "${pids[0]}"

ULTRASPEED_API_KEY=$(cat "$work/key") "$venv/bin/python" tests/sdk/check.py "http://127.0.0.1:$(field "$work/router.json" http_port)"
