#!/usr/bin/env bash
# What `make test` cannot try of deploy/: the manifests against Kubernetes' own schema (from PyPI), and the images of docker/Dockerfile, built and
# run. Needs root, buildah and debootstrap (Debian packages), and overlay mounts; the images lie in a temporary folder and go with it (5 GB).
# usage: check.sh [--cuda=FOLDER]     --cuda: builds the GPU worker too, with the CUDA Toolkit in FOLDER instead of NVIDIA's packages (15 GB)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cuda=
case "${1:-}" in
  --cuda=*) cuda=$(readlink -f "${1#--cuda=}") ;;
  "") ;;
  *) echo "usage: check.sh [--cuda=FOLDER]" >&2; exit 2 ;;
esac
for program in buildah debootstrap python3; do
  command -v "$program" >/dev/null || { echo "deploy check: no $program (apt-get install buildah debootstrap python3-venv)" >&2; exit 1; }
done

work=$(mktemp -d)
pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
  buildah rm --all >/dev/null 2>&1 || true
  mount | awk -v work="$work/" 'index($3, work) == 1 {print $3}' | sort -r | xargs -r umount -l  # what a build that was cut short left
  rm -rf "$work"
}
trap stop EXIT
ok() { echo "ok   $*"; }

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check kubernetes-validate
for manifest in deploy/kubernetes/*.yaml; do
  "$work/venv/bin/kubernetes-validate" --strict --quiet "$manifest"
  ok "schema: $manifest"
done

cat >"$work/storage.conf" <<END
[storage]
driver = "overlay"
runroot = "$work/run"
graphroot = "$work/store"
END
export CONTAINERS_STORAGE_CONF=$work/storage.conf
container_of() { buildah from --pull-never "$1"; }
run() { buildah run --isolation chroot "$@"; }
build() { buildah bud --isolation chroot --pull-never --layers -f docker/Dockerfile "$@" . >"$work/build.log" 2>&1 || { tail -30 "$work/build.log" >&2; exit 1; }; }

# What a registry would give.
debootstrap --variant=minbase bookworm "$work/debian" >"$work/debootstrap.log"
base=$(buildah from scratch)
buildah add -q "$base" "$work/debian" / >/dev/null
buildah commit -q --rm "$base" docker.io/library/debian:12-slim >/dev/null
rm -rf "$work/debian"

for image in router worker; do
  build --target "$image" -t "ultraspeed-$image"
  ok "built: $image"
done
worker=$(container_of localhost/ultraspeed-worker)
router=$(container_of localhost/ultraspeed-router)
[ "$(run "$worker" -- id -u)" = 10001 ] && ok "the worker is not root"

# Both share this machine's loopback. `timeout` bounds them, whatever becomes of this script.
# await CONTAINER FILE
await() {
  for _ in $(seq 600); do
    run "$1" -- test -s "$2" 2>/dev/null && return
    sleep 0.1
  done
  echo "deploy check: no $2" >&2
  exit 1
}
field() { run "$1" -- sed -n "s/.*\"$3\":\([0-9]*\).*/\1/p" "$2"; }
run "$worker" -- timeout 120 ultraspeed-worker --model=/models/tiny-mimo --listen=127.0.0.1:0 --ready-file=/tmp/ready >"$work/worker.log" 2>&1 &
pids+=($!)
await "$worker" /tmp/ready
run "$router" -- timeout 120 ultraspeed-router --no-auth --listen=127.0.0.1:0 --worker="127.0.0.1:$(field "$worker" /tmp/ready port)" --ready-file=/tmp/ready \
  >"$work/router.log" 2>&1 &
pids+=($!)
await "$router" /tmp/ready
run "$router" -- ultraspeed generate --server="127.0.0.1:$(field "$router" /tmp/ready port)" --wait=20s --max-tokens=8 --json 'def f(x):' >"$work/answer"
grep -q '"completion_tokens":8' "$work/answer" && ok "a request through both images"

[ -n "$cuda" ] || exit 0
build --target tools -t tools
toolkit=$(container_of localhost/tools)
buildah add -q "$toolkit" "$cuda" /usr/local/cuda >/dev/null
run "$toolkit" -- sh -c '[ -e /usr/local/cuda/lib64 ] || ln -s lib /usr/local/cuda/lib64; echo /usr/local/cuda/lib64 >/etc/ld.so.conf.d/cuda.conf; ldconfig'
buildah commit -q --rm "$toolkit" cuda-local >/dev/null
build --build-arg CUDA=localhost/cuda-local --target worker-cuda -t ultraspeed-worker-cuda
gpu=$(container_of localhost/ultraspeed-worker-cuda)
run "$gpu" -- ultraspeed-worker --plan --model=shape:mimo-v2.5-pro --gpus=8 >"$work/plan"
grep -q 'mimo-v2.5-pro on 8 GPUs' "$work/plan" && ok "built: worker-cuda; it plans a node"
