#!/usr/bin/env bash
# 10^5 connections, 10^6 tasks, 10^6 timers and 2,000 runtimes leave no byte on the heap, no slot, no descriptor and no
# thread, on one thread and on several workers (tests/leaks.rs). Takes half a minute on 2 cores.
# Usage: tests/proof/baselines.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
KITTIWAKE_LEAKS_ROUNDS=100 cargo test --all-features --test leaks | tee "$log"
awk '/^test result: ok/ { passed += $4 } END { print "baselines: " passed " tests left nothing" }' "$log"
