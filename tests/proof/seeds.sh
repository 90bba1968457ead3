#!/usr/bin/env bash
# The suite under seeds: the tests pass in whatever order ready tasks run.
#
# Builds the tests so that each runtime without a seed of its own takes one from KITTIWAKE_RNG_SEED, and runs them under the
# seeds 0 to 19. SEEDS=5 runs fewer. Arguments name the seeds to run: `tests/proof/seeds.sh 7`. It may take 10 minutes of CPU.
#
# Left out, because no order of tasks can change them: programs that must not compile, the text of the sources, traits of
# types and names. Also the examples, which are programs of their own and are built without the variable, the replays of the
# fuzz targets, one of which chooses seeds by itself, and the soak test, which has its own seeds.
set -euo pipefail
cd "$(dirname "$0")/../.."

left_out=(auto_traits compile examples examples_net fuzz layers names soak)

export CARGO_INCREMENTAL=0 CARGO_TARGET_DIR="${SEEDS_TARGET_DIR:-target-seeds}"
export RUSTFLAGS="${RUSTFLAGS:-} --cfg kittiwake_rng_seed"

tests=()
for file in tests/*.rs tests/*/main.rs; do
    name=${file#tests/}
    name=${name%.rs}
    name=${name%/main}
    [[ " ${left_out[*]} " == *" $name "* ]] || tests+=(--test "$name")
done

# One line for each program: "Executable tests/seeds.rs (target-seeds/debug/deps/seeds-0123)".
programs=$(cargo test --all-features --no-run --lib "${tests[@]}" 2>&1 | tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
[ -n "$programs" ] || { echo "seeds: no tests were built"; exit 1; }

if [ $# -gt 0 ]; then
    seeds=("$@")
else
    mapfile -t seeds < <(seq 0 $((${SEEDS:-20} - 1)))
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=()
for seed in "${seeds[@]}"; do
    for program in $programs; do
        if KITTIWAKE_RNG_SEED=$seed "$program" -q >"$log" 2>&1; then
            passed=$((passed + $(sed -n 's/^test result: ok. \([0-9]*\) passed.*/\1/p' "$log")))
        else
            printf '\n== %s under seed %s\n' "$(basename "$program")" "$seed"
            cat "$log"
            failed+=("KITTIWAKE_RNG_SEED=$seed $program")
        fi
    done
done
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    echo "seeds: ${#failed[@]} programs failed under ${#seeds[@]} seeds"
    exit 1
fi
echo "seeds: $passed tests passed under ${#seeds[@]} seeds"
