#!/usr/bin/env bash
# Proves that no test fails because the machine is slow: the whole suite passes beside four busy loops.
# `tests/proof/busy.sh [TIMES]` runs it so many times, once if TIMES is not given. On 2 cores each takes two to four minutes.
#
# Tests bound the time since their last step, and not their whole time: see `progress` in tests/support/mod.rs.
set -euo pipefail
cd "$(dirname "$0")/../.."

times=${1:-1}
# More tests at a time than there are cores. Most of them wait, so a run takes less time, and each gets less of a core.
at_once=8
log=$(mktemp)
loops=()
# The processes that this script has started, and no others.
trap 'for pid in "${loops[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -f "$log"' EXIT

# Tests run the examples, too.
cargo build --all-features --examples
if cargo nextest --version >/dev/null 2>&1; then
    suite=(cargo nextest run --all-features)
    "${suite[@]}" --no-run
    suite+=(--no-fail-fast --test-threads "$at_once")
else
    suite=(cargo test --all-features --lib --tests)
    "${suite[@]}" --no-run
    suite+=(--no-fail-fast -- --test-threads "$at_once")
fi

for _ in 1 2 3 4; do
    # A loop ends by itself if the script was killed.
    while kill -0 $$ 2>/dev/null; do for _ in {1..100000}; do :; done; done &
    loops+=($!)
done

for ((run = 1; run <= times; run++)); do
    begun=$SECONDS
    if ! timeout 1800 "${suite[@]}" >"$log" 2>&1; then
        grep -E '^ +(FAIL|TIMEOUT|SIG[A-Z]+) |^test .* FAILED$|panicked at' -A 3 "$log" | head -n 100 || true
        tail -n 20 "$log"
        echo "busy: run $run of $times has failed"
        exit 1
    fi
    for pid in "${loops[@]}"; do kill -0 "$pid" || { echo "busy: a loop has ended, so the suite ran without it"; exit 1; }; done
    echo "busy: run $run of $times passed in $((SECONDS - begun)) s"
done
passed=$(grep -cE '^ +PASS |^test .* ok$' "$log")
echo "busy: $((passed * times)) tests passed in $times runs beside four busy loops, 0 skipped"
