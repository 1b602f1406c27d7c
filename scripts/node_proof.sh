#!/usr/bin/env bash
# Shows on a machine with several GPUs what one model over all of them does, within ten minutes: sums over ranks right and how fast, the
# text of one GPU, rounds at the served shape with real sums in the resident kernel, and their timeline. Takes binaries that are built:
# bin/ultraspeed-bench and bin/cuda_ranks_test of BUILD_DIR, with libraries that this machine lacks in BUILD_DIR/lib if there is one.
# OUTPUT_DIR gets a log and, where there is one, a JSON report for each step, and summary.json. Exit status 1 if any step failed.
# usage: node_proof.sh BUILD_DIR OUTPUT_DIR      environment: GPUS (all), CALLS (100000), ROUNDS (50)
set -uo pipefail
[ $# -eq 2 ] || { echo "usage: scripts/node_proof.sh BUILD_DIR OUTPUT_DIR" >&2; exit 2; }
mkdir -p "$2" || exit
build=$(cd "$1" && pwd) && out=$(cd "$2" && pwd) || exit
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit  # tests and models lie here
gpus=${GPUS:-$(nvidia-smi -L | wc -l)}
calls=${CALLS:-100000}
rounds=${ROUNDS:-50}
[ "$gpus" -ge 2 ] || { echo "node-proof: needs at least 2 GPUs, found $gpus" >&2; exit 1; }
for program in ultraspeed-bench cuda_ranks_test; do
  [ -x "$build/bin/$program" ] || { echo "node-proof: $build/bin/$program is missing" >&2; exit 1; }
done

# A program that uses NVLink multicast and dies can put the host's switches out of service.
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
export LD_LIBRARY_PATH="$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if ! ldconfig -p | grep -q 'libnccl\.so\.2'; then  # NCCL comes with PyTorch, too
  for folder in /usr/local/cuda/lib64 $(python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0] + "/lib")' 2>/dev/null); do
    [ -e "$folder/libnccl.so.2" ] && export LD_LIBRARY_PATH="$LD_LIBRARY_PATH:$folder" && break
  done
fi

status=0
: >"$out/steps.tsv"
# step NAME SECONDS COMMAND...: standard output to NAME.json where it is JSON, all else to NAME.log.
step() {
  local name=$1 seconds=$2 started=$SECONDS
  shift 2
  timeout --kill-after=10 "$seconds" "$@" >"$out/$name.out" 2>"$out/$name.log"
  local code=$? verdict=ok
  [ "$code" -eq 0 ] || { verdict=failed; status=1; }
  if head -c 1 "$out/$name.out" | grep -q '{'; then
    mv "$out/$name.out" "$out/$name.json"
  else
    cat "$out/$name.out" >>"$out/$name.log"
    rm -f "$out/$name.out"
  fi
  printf '%s\t%s\t%d\t%d\n' "$name" "$verdict" "$code" $((SECONDS - started)) >>"$out/steps.tsv"
  printf '%-18s %-6s exit %3d  %4d s\n' "$name" "$verdict" "$code" $((SECONDS - started))
  [ "$verdict" = ok ] || tail -n 15 "$out/$name.log"
}

{ nvidia-smi -L; nvidia-smi topo -m; } >"$out/machine.txt" 2>&1
bench="$build/bin/ultraspeed-bench"
# The bundled model has 4 key heads, so it divides over 4 GPUs at most.
text_gpus=$((gpus < 4 ? gpus : 4))
step allreduce 100 "$bench" allreduce --gpus "$gpus" --calls "$calls" --json
step ranks_test 190 "$build/bin/cuda_ranks_test" "--gtest_output=json:$out/ranks_test.json"
step decode_1 40 "$bench" decode --device cuda --max_tokens 64 --repeats 1 --json
step decode_n 40 "$bench" decode --device cuda --gpus "$text_gpus" --max_tokens 64 --repeats 1 --json
step rank_1 90 "$bench" rank --device cuda --rounds "$rounds" --json
step rank_n 120 "$bench" rank --device cuda --gpus "$gpus" --rounds "$rounds" --trace "$out/rank_n.trace" --json
[ -e "$out/rank_n.trace" ] && gzip -f "$out/rank_n.trace"

python3 - "$out" "$gpus" <<'PY'
import json, os, sys
out, gpus = sys.argv[1], int(sys.argv[2])
def load(name):
    path = f"{out}/{name}.json"
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}
def pick(report, *keys):
    for key in keys:
        report = report.get(key, {}) if isinstance(report, dict) else {}
    return report if report != {} else None
sums, tests, one, many = load("allreduce"), load("ranks_test"), load("rank_1"), load("rank_n")
summary = {
    "gpus": gpus,
    "steps": {line[0]: {"verdict": line[1], "exit": int(line[2]), "seconds": int(line[3])}
              for line in (row.rstrip("\n").split("\t") for row in open(f"{out}/steps.tsv"))},
    "device": sums.get("device"),
    "sums_checked": sums.get("sums_checked"),
    "wrong_elements": sums.get("wrong_elements"),
    "sum_times_us": {str(t["bytes_fp32"]): [t["peers_us"], t["parts_through_nccl_us"], t["nccl_all_reduce_us"]] for t in sums.get("times", [])},
    "tests": {key: tests.get(key) for key in ("tests", "failures", "errors", "disabled")},
    "speculative_tokens_per_second": [load(f"decode_{n}").get("speculative_tokens_per_second") for n in ("1", "n")],
    "resident_ms_per_round": {"one GPU, alone": pick(one, "resident", "speculative", "ms_per_round"),
                              f"{gpus} GPUs": pick(many, "resident", "speculative", "ms_per_round")},
}
with open(f"{out}/summary.json", "w") as file:
    json.dump(summary, file, indent=1)
print(json.dumps(summary, indent=1))
PY
exit $status
