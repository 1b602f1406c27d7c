#!/usr/bin/env bash
# Runs ctest in a build folder and closes with one line: "N passed, N failed", counted in test cases.
# usage: run_tests.sh BUILD_DIR [ctest arguments]
set -uo pipefail
build=$1
shift
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
export LSAN_OPTIONS="suppressions=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/tests/lsan.supp:print_suppressions=0"

GTEST_OUTPUT="xml:$results/" ctest --test-dir "$build" --output-on-failure --no-tests=error \
  --output-junit "$results/ctest.junit" "$@"
status=$?

python3 - "$results" "$status" <<'PY'
import glob, os, sys, xml.etree.ElementTree as ET
folder, status = sys.argv[1], int(sys.argv[2])
cases = failed = reports = 0
for path in glob.glob(folder + "/*.xml"):
    root = ET.parse(path).getroot()
    reports += 1
    cases += int(root.get("tests"))
    failed += int(root.get("failures")) + int(root.get("errors"))
# A program that crashed, timed out or did not start wrote no report: one failure each.
programs = int(ET.parse(folder + "/ctest.junit").getroot().get("tests")) if os.path.exists(folder + "/ctest.junit") else 0
crashed = max(programs - reports, 1 if status != 0 and failed == 0 else 0)
cases += crashed
failed += crashed
print(f"{cases - failed} passed, {failed} failed")
PY
exit $status
