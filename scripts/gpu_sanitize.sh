#!/usr/bin/env bash
# Runs the GPU tests of small shapes under compute-sanitizer: memcheck (accesses out of bounds) and racecheck (shared memory). Each job is
# one group of tests under one tool; jobs run side by side, all of them within LIMIT_S. Prints a line for each job and one for each tool.
# Exit status 1 on any finding, failed test, skipped test or job that did not end in time.
# usage: gpu_sanitize.sh BUILD_DIR      environment: LIMIT_S (140), JOBS (8), SANITIZER (compute-sanitizer in PATH or /usr/local/cuda)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
[ $# -eq 1 ] || { echo "usage: scripts/gpu_sanitize.sh BUILD_DIR" >&2; exit 2; }
bin="$1/bin"
limit=${LIMIT_S:-140}
sanitizer=${SANITIZER:-$(PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin" command -v compute-sanitizer)}
[ -x "${sanitizer:-}" ] || { echo "gpu-sanitize: compute-sanitizer not found: it comes with the CUDA Toolkit; name it with SANITIZER=" >&2; exit 1; }

# TOOLS GROUP PROGRAM FILTER. Left out: tests that compare each of hundreds of rows alone with its batch, the served vocabulary and contexts of
# thousands of keys: they launch the same kernels at sizes that the tools take minutes for. racecheck follows the executor's kernels one by one:
# a process that loads the whole executor ends under it without a word, and the resident engine's blocks wait for each other longer than it lets
# them. memcheck runs both.
groups=(
  "racecheck linear cuda_kernels_test LinearTest.AgreesWithDoublePrecisionOnAFewShapes"
  "racecheck sampling cuda_kernels_test CudaSample.AFewRowsAgreeWithTheCpu:CudaSample.NanAndInfinity:CudaAccept.*:CudaMaskLogits.*"
  "racecheck attention cuda_kernels_test CudaAttention.*-*.SameBits*"
  "racecheck experts cuda_kernels_test ExpertsTest.AgreesWithDoublePrecision:ExpertsTest.AllTokensMayChooseTheSameExperts:ExpertsTest.NoTokensIsNoWork"
  "racecheck router cuda_kernels_test RouterTest.*-*.ARowIsTheSameBitsInAnyBatch"
  "racecheck rows cuda_kernels_test CudaRows.*"
  "racecheck markov cuda_kernels_test MarkovTest.*"
  "memcheck executor cuda_executor_test *.MixedRoundsReplayTheSameBits:*.RandomWeightsAreRepeatable:*.OthersInTheRoundAreFree"
  "memcheck linear cuda_kernels_test LinearTest.*-*.ARowIsTheSameBitsInAnyBatch"
  "memcheck resident cuda_resident_test ResidentTest.PlainRounds*:ResidentTest.SpeculativeRounds*:ResidentTest.SequencesShareARound*:ResidentTest.ASessionFollowsTheBound"
  "memcheck attention cuda_kernels_test CudaAttention.*-*.SameBits*"
  "memcheck sampling cuda_kernels_test CudaSample.*:CudaTopLogprobs.*:CudaAccept.*:CudaMaskLogits.*-*.AgreesWithTheCpuAtTheServedVocabulary"
  "memcheck experts cuda_kernels_test ExpertsTest.AgreesWithDoublePrecision:ExpertsTest.AllTokensMayChooseTheSameExperts:ExpertsTest.NoTokensIsNoWork"
  "memcheck router cuda_kernels_test RouterTest.*-*.ARowIsTheSameBitsInAnyBatch"
  "memcheck rows cuda_kernels_test CudaRows.*"
  "memcheck markov cuda_kernels_test MarkovTest.*"
)
for program in cuda_kernels_test cuda_executor_test cuda_resident_test; do
  [ -x "$bin/$program" ] || { echo "gpu-sanitize: $bin/$program is missing; build the target gpu_tests first" >&2; exit 1; }
done

logs=$(mktemp -d "${TMPDIR:-/tmp}/ultraspeed-sanitize.XXXXXX")
keep_logs=no
trap '[ "$keep_logs" = yes ] || rm -rf "$logs"' EXIT

# run_job TOOL GROUP PROGRAM FILTER: writes $logs/TOOL.GROUP.{log,line}; the line begins with "ok" or "bad".
run_job() {
  local tool=$1 group=$2 program=$3 filter=$4 started=$SECONDS
  local log="$logs/$tool.$group.log" left=$((deadline - $(date +%s)))
  [ "$left" -gt 0 ] || return 0  # told with its tool
  timeout --kill-after=5 "$left" "$sanitizer" --tool "$tool" --print-limit 20 "$bin/$program" "--gtest_filter=$filter" >"$log" 2>&1
  local status=$? passed findings verdict=ok
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) tests*\..*/\1/p' "$log")
  findings=$(sed -n 's/^=* \(ERROR\|RACECHECK\) SUMMARY: //p' "$log" | tail -n 1)
  # Both the tool's own summary and the tests' must be there: a run that ended early proves nothing.
  case "$findings" in
    "0 errors" | "0 hazards displayed (0 errors, 0 warnings)"*) ;;
    *) verdict=bad ;;
  esac
  if [ "$status" -ne 0 ] || [ "${passed:-0}" -eq 0 ] || grep -q '^\[  SKIPPED \]' "$log"; then verdict=bad; fi
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then findings="not done in time"; fi
  printf '%-4s %-10s %-10s %3s tests %4s s  %s\n' "$verdict" "$tool" "$group" "${passed:-0}" $((SECONDS - started)) \
    "${findings:-no summary, exit status $status}" >"$logs/$tool.$group.line"
  cat "$logs/$tool.$group.line"
}
export -f run_job
export bin sanitizer logs
deadline=$(($(date +%s) + limit))
export deadline

# The longest go first.
printf '%s\n' "${groups[@]}" | xargs -P "${JOBS:-8}" -I{} bash -c 'set -f; run_job $1' _ {}

status=0
for tool in memcheck racecheck; do
  ended=$(cat "$logs/$tool".*.line 2>/dev/null | wc -l)
  good=$(cat "$logs/$tool".*.line 2>/dev/null | grep -c '^ok')
  all=$(printf '%s\n' "${groups[@]}" | grep -c "^$tool ")
  echo "$tool: $good of $all groups clean, $((all - ended)) not started within $limit s"
  [ "$good" -eq "$all" ] || status=1
done
if [ "$status" -ne 0 ]; then
  keep_logs=yes
  for line in $(grep -l '^bad' "$logs"/*.line 2>/dev/null); do
    echo "--- last lines of ${line%.line}.log"
    tail -n 40 "${line%.line}.log"
  done
fi
exit $status
