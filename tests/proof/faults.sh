#!/usr/bin/env bash
# Proves that servers survive faults: system calls that fail, descriptors that run out, sandboxes that refuse calls, and
# networks that lose packets, have no route or go down. `faults.py` runs the examples. The tests `faults` and
# `faults_net` run themselves. Takes about three minutes on two cores, apart from the builds. Run it from the root.
set -euo pipefail

installs() {
    apt-get update -q && apt-get install -qy --no-install-recommends "$@"
}
{ command -v strace && command -v python3 && command -v nft && command -v ip && command -v ss && command -v tc; } >/dev/null \
    || installs strace python3 nftables iproute2 >/dev/null \
    || echo "strace, python3, nftables and iproute2 cannot be installed: the cases that need them are skipped"

cargo build --release --examples --all-features
# One of the tests runs one.
cargo build --examples --all-features
output=$(mktemp)
trap 'rm -f "$output"' EXIT

# Prints the output as it comes, and keeps it. A failure is reported at the end.
failed=0
if command -v python3 >/dev/null; then
    python3 -u tests/proof/faults.py "${CARGO_TARGET_DIR:-target}/release/examples" | tee -a "$output" || failed=1
else
    echo "skipped: the examples under faults: python3 is missing" | tee -a "$output"
fi
cargo test --all-features --test faults --test faults_net -- --nocapture --test-threads=4 2>&1 | tee -a "$output" || failed=1

# count PREFIX WORD: the sum of the numbers in front of the word, such as "84 passed", in lines with this prefix.
count() {
    sed -nE "s/^$1:.* ([0-9]+) $2\\b.*/\\1/p" "$output" | awk '{ sum += $1 } END { print sum + 0 }'
}
# A test that cannot run says so, and passes.
skipped_tests=$(grep -cE '[a-z_]+ (is|was) skipped: ' "$output" || true)
passed=$(($(count 'faults of programs' passed) + $(count 'test result' passed) - skipped_tests))
skipped=$(($(count 'faults of programs' skipped) + skipped_tests))
broken=$(($(count 'faults of programs' failed) + $(count 'test result' failed)))
[ "$failed" = 0 ] || { echo "faults: $broken cases FAILED, $passed passed, $skipped skipped"; exit 1; }
echo "faults: $passed cases passed, $skipped skipped"
