#!/usr/bin/env bash
# Starts a worker and a router on loopback with the bundled model, streams one completion, prints its statistics, stops both.
#   scripts/demo.sh BUILD_DIR          the demo; the last line of standard output is a JSON object; exit status 0
#   scripts/demo.sh BUILD_DIR --stay   stays up (make serve): prints endpoints, a key and example commands, waits for Ctrl-C
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { echo "usage: scripts/demo.sh BUILD_DIR [--stay]" >&2; exit 2; }
[ $# -ge 1 ] && [ $# -le 2 ] || usage
bin="$1/bin"
stay=no
if [ $# -eq 2 ]; then
  [ "$2" = --stay ] || usage
  stay=yes
fi
model=models/tiny-mimo
for program in ultraspeed-worker ultraspeed-router ultraspeed; do
  [ -x "$bin/$program" ] || { echo "demo: $bin/$program is missing; build first" >&2; exit 1; }
done

work="$(mktemp -d "${TMPDIR:-/tmp}/ultraspeed-demo.XXXXXX")"
worker_pid=
router_pid=

stop() {
  local status=$?
  trap - EXIT INT TERM
  # The router first, so that its streams end before their worker does.
  for pid in $router_pid $worker_pid; do
    if kill -TERM "$pid" 2>/dev/null; then wait "$pid" 2>/dev/null || true; fi
  done
  if [ "$status" -ne 0 ] && [ "$status" -lt 128 ]; then
    for log in worker router; do
      [ -s "$work/$log.log" ] && { echo "--- last lines of the $log's log:" >&2; tail -n 20 "$work/$log.log" >&2; }
    done
  fi
  rm -rf "$work"
  exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# await_ready NAME PID FILE: until the server has written its ready file; fails if it dies or takes too long.
await_ready() {
  local name=$1 pid=$2 file=$3 waited=0
  until [ -s "$file" ]; do
    kill -0 "$pid" 2>/dev/null || { echo "demo: the $name ended before it was ready" >&2; exit 1; }
    [ "$waited" -lt 1200 ] || { echo "demo: the $name was not ready after 120 s" >&2; exit 1; }
    sleep 0.1
    waited=$((waited + 1))
  done
}
field() { sed -n "s/.*\"$2\":\([0-9]*\).*/\1/p" "$1"; }

# setsid: Ctrl-C must not reach the servers by itself, else `stop` would be their second signal and cut streams off.
setsid "$bin/ultraspeed-worker" --model="$model" --listen=127.0.0.1:0 --ready-file="$work/worker.json" \
  >"$work/worker.out" 2>"$work/worker.log" &
worker_pid=$!

# A fresh pepper and key, only for this run. The key goes to the client by environment, never by a command line.
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/pepper")
(umask 077 && "$bin/ultraspeed-router" new-key --pepper-file="$work/pepper" --tenant=demo --key-id=demo-1 \
  >"$work/keys" 2>"$work/key")
ULTRASPEED_API_KEY="$(cat "$work/key")"
export ULTRASPEED_API_KEY

await_ready worker "$worker_pid" "$work/worker.json"
setsid "$bin/ultraspeed-router" --listen=127.0.0.1:0 --http-listen=127.0.0.1:0 --metrics-listen=127.0.0.1:0 \
  --worker="127.0.0.1:$(field "$work/worker.json" port)" --api-keys="$work/keys" --pepper-file="$work/pepper" \
  --ready-file="$work/router.json" \
  >"$work/router.out" 2>"$work/router.log" &
router_pid=$!
await_ready router "$router_pid" "$work/router.json"
server="127.0.0.1:$(field "$work/router.json" port)"
http="http://127.0.0.1:$(field "$work/router.json" http_port)"
"$bin/ultraspeed" models --server="$server" --wait=30s >"$work/models"

if [ "$stay" = yes ]; then
  cat <<TEXT
UltraSpeed serves $model.
  gRPC     $server  (ultraspeed.v1.Inference)
  HTTP     $http  (/v1/chat/completions, /v1/completions, /v1/messages, /v1/models)
  metrics  http://127.0.0.1:$(field "$work/router.json" metrics_port)/metrics
  key      $ULTRASPEED_API_KEY

Try, in another terminal:
  export ULTRASPEED_API_KEY=$ULTRASPEED_API_KEY
  $bin/ultraspeed models --server=$server
  $bin/ultraspeed generate --server=$server --tier=ultraspeed --temperature=0 --max-tokens=200 'def main():'
  $bin/ultraspeed generate --server=$server --temperature=0 --max-tokens=200 --no-speculation 'def main():'
  curl -N $http/v1/chat/completions -H "Authorization: Bearer $ULTRASPEED_API_KEY" -H 'Content-Type: application/json' \\
    -d '{"model":"tiny-mimo","messages":[{"role":"user","content":"Write a function that reverses a string."}],"max_tokens":200,"stream":true}'

Ctrl-C stops both servers.
TEXT
  trap 'exit 0' INT TERM  # the way to end it
  wait -n "$worker_pid" "$router_pid" || true
  echo "demo: a server ended by itself" >&2
  exit 1
fi

cat "$work/models"
prompt="$(cat <<'TEXT'
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
TEXT
)"
printf '%s' "$prompt"
"$bin/ultraspeed" generate --server="$server" --tier=ultraspeed --temperature=0 --max-tokens=160 --stats-json "$prompt"
