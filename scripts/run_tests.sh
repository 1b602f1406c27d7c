#!/usr/bin/env bash
# Runs ctest in a build folder and closes with one line: "N passed, N failed", counted in test cases. Skipped cases count as neither;
# lines before it name the failed ones and say how many were skipped and why. One test program at a time: two at once on two cores took as
# long, since models fill both, and upset tests that give a process a second.
# usage: run_tests.sh [--no-skips] BUILD_DIR [ctest arguments]     --no-skips: a skipped case is a failed one
set -uo pipefail
no_skips=0
if [ "${1:-}" = --no-skips ]; then
  no_skips=1
  shift
fi
build=$1
shift
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
mkdir "$results/tmp"
export TEST_TMPDIR="$results/tmp"  # GoogleTest's TempDir
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export LSAN_OPTIONS="suppressions=$root/tests/lsan.supp:print_suppressions=0"
prefix=()
if grep -q '^CMAKE_CXX_FLAGS:.*-fsanitize=thread' "$build/CMakeCache.txt"; then
  # Reports in files, for many come from programs that tests start and then kill. Where the kernel moves mappings by more than 28 bits, GCC
  # 12's ThreadSanitizer finds its own memory taken.
  export TSAN_OPTIONS="suppressions=$root/tests/tsan/suppressions.txt:print_suppressions=0:second_deadlock_stack=1:log_path=$results/tsan"
  prefix=(setarch -R)
fi

GTEST_OUTPUT="xml:$results/" "${prefix[@]}" ctest --test-dir "$build" --output-on-failure --no-tests=error \
  --output-junit "$results/ctest.junit" "$@"
status=$?

python3 - "$results" "$status" "$no_skips" <<'PY'
import collections, glob, os, sys, xml.etree.ElementTree as ET
folder, status, no_skips = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"
cases = failed = reports = 0
names = []  # of failed cases
reasons = collections.Counter()  # of skipped cases
for path in glob.glob(folder + "/*.xml"):
    root = ET.parse(path).getroot()
    reports += 1
    cases += int(root.get("tests"))
    failed += int(root.get("failures")) + int(root.get("errors"))
    names += [f"{case.get('classname')}.{case.get('name')}" for case in root.iter("testcase") if case.find("failure") is not None]
    for skipped in root.iter("skipped"):
        reasons[(skipped.get("message") or "").strip().split("\n")[-1] or "no reason given"] += 1
# A program that crashed, timed out or did not start wrote no report: one failure each.
programs = int(ET.parse(folder + "/ctest.junit").getroot().get("tests")) if os.path.exists(folder + "/ctest.junit") else 0
crashed = max(programs - reports, 1 if status != 0 and failed == 0 else 0)
cases += crashed
failed += crashed
races = sorted(glob.glob(folder + "/tsan.*"))  # of one process each
for path in races:
    print(open(path, errors="replace").read())
if races:
    print(f"{len(races)} processes with reports of ThreadSanitizer")
    cases += len(races)
    failed += len(races)
num_skipped = sum(reasons.values())
for name in names:
    print(f"failed: {name}")
for reason, count in reasons.items():
    print(f"{count} skipped: {reason}")
if no_skips:
    failed += num_skipped
else:
    cases -= num_skipped
print(f"{cases - failed} passed, {failed} failed")
sys.exit(1 if status == 0 and failed > 0 else status)
PY
