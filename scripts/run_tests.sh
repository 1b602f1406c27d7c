#!/usr/bin/env bash
# Runs ctest in a build folder and closes with one line: "N passed, N failed", counted in test cases.
# usage: run_tests.sh BUILD_DIR [ctest arguments]
set -uo pipefail
build=$1
shift
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

GTEST_OUTPUT="xml:$results/" ctest --test-dir "$build" --output-on-failure --no-tests=error "$@"
status=$?

python3 - "$results" "$status" <<'PY'
import glob, sys, xml.etree.ElementTree as tree
folder, status = sys.argv[1], int(sys.argv[2])
cases = failed = 0
for path in glob.glob(folder + "/*.xml"):
    root = tree.parse(path).getroot()
    cases += int(root.get("tests"))
    failed += int(root.get("failures")) + int(root.get("errors"))
if status != 0 and failed == 0:
    failed = 1  # a program crashed, timed out or did not start, so it wrote no report
    cases += 1
print(f"{cases - failed} passed, {failed} failed")
PY
exit $status
