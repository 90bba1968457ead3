#!/usr/bin/env bash
# Proves that no test leaves a descriptor, a thread or a byte on the heap. Each test runs in a process of its own, where
# tests/support/baseline.rs compares what is there before the test and after it. To see a byte, it runs the test again.
#
#     tests/proof/alone.sh              all programs of tests/ that run a runtime
#     tests/proof/alone.sh PROGRAM..    some of them, such as: tcp_connect workers
#
# A test that cannot run twice in a process (`within_once` in tests/support/mod.rs) is compared without the heap. Not
# compared are tests that leave something on purpose (`bounded`), and those that use neither function.
set -euo pipefail
cd "$(dirname "$0")/../.."

. tests/proof/test_programs
# These run no runtime.
test_programs_but auto_traits compile layers
if [ $# -gt 0 ]; then
    programs=()
    for name; do programs+=(--test "$name"); done
fi

# Tests run the examples, too.
cargo build --examples --all-features
built=$(cargo test --all-features --no-run "${programs[@]}" 2>&1 | tee >(cat >&2) | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
[ -n "$built" ] || { echo "alone: no tests were built"; exit 1; }

# Runs one test, and leaves the result in the folder.
run_alone() {
    local program=$1 test=$2 log result
    log=$results/$(basename "$program").${test//:/_}
    if ! timeout 600 "$program" --exact "$test" --nocapture >"$log" 2>&1; then
        { printf '\n== %s %s\n' "$program" "$test" && cat "$log"; } >&2
        result="failed: $program --exact $test"
    elif grep -qF 'alone: nothing is left' "$log"; then
        result="compared: $test"
    elif grep -qF 'alone: no descriptor and no thread is left' "$log"; then
        result="without heap: $test"
    else
        result="not compared: $(basename "$program"): $test"
    fi
    echo "$result" >"$log"
}

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
export -f run_alone
export results KITTIWAKE_TESTS_ALONE=1
for program in $built; do
    # Those that are ignored are listed, too.
    "$program" --list --format terse | grep -vxFf <("$program" --list --format terse --ignored) \
        | sed -n "s|^\(.*\): test$|$program \1|p" || true
done | xargs -P 4 -L 1 bash -c 'run_alone "$@"' run_alone

cat "$results"/* | sort | grep '^not compared: ' || true
cat "$results"/* | grep '^failed: ' && { echo "alone: some tests failed, or left something"; exit 1; }
count() { cat "$results"/* | grep -c "^$1: " || true; }
echo "alone: $(count compared) tests left nothing, $(count 'without heap') no descriptor and no thread, $(count 'not compared') not compared"
