#!/usr/bin/env bash
# The suite under seeds: the tests pass in whatever order ready tasks run.
#
# Builds the tests so that each runtime without a seed of its own takes one from KITTIWAKE_RNG_SEED, and runs them under the
# seeds 0 to 19. SEEDS=5 runs fewer. Arguments name the seeds to run: `tests/proof/seeds.sh 7`. All take half an hour of CPU.
#
# Left out, because no order of tasks can change them: programs that must not compile, the text of the sources, traits of
# types and names. Also the tests of the examples, which are programs of their own and are not built here, the replays of
# the fuzz targets, one of which chooses seeds by itself, and the soak test, which has its own seeds. And two tests that
# would take a tenth of the time each: that of a hundred thousand connections, most of it in the kernel, and that of
# growing pieces, which computes by the clock.
set -euo pipefail
cd "$(dirname "$0")/../.."

left_out=(auto_traits compile examples examples_net faults faults_net fuzz layers names shutdown_loss soak stdio)

export CARGO_INCREMENTAL=0 CARGO_TARGET_DIR="${SEEDS_TARGET_DIR:-target-seeds}"
export RUSTFLAGS="${RUSTFLAGS:-} --cfg kittiwake_rng_seed"

. tests/proof/test_programs
test_programs_but "${left_out[@]}"

# One line for each program: "Executable tests/seeds.rs (target-seeds/debug/deps/seeds-0123)".
built=$(cargo test --all-features --no-run --lib "${programs[@]}" 2>&1 | tee >(cat >&2) | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
[ -n "$built" ] || { echo "seeds: no tests were built"; exit 1; }

if [ $# -gt 0 ]; then
    seeds=("$@")
else
    mapfile -t seeds < <(seq 0 $((${SEEDS:-20} - 1)))
fi
# Runs all programs under one seed, and leaves the results in the folder.
run_seed() {
    local seed=$1 program log
    log=$results/$seed
    for program in $built; do
        if KITTIWAKE_RNG_SEED=$seed "$program" -q --test-threads 2 --skip hundred_thousand_connections \
            --skip growing_pieces >"$log.one" 2>&1; then
            sed -n 's/^test result: ok. \([0-9]*\) passed.*/passed \1/p' "$log.one" >>"$log"
        else
            { printf '\n== %s under seed %s\n' "$(basename "$program")" "$seed" && cat "$log.one"; } >&2
            echo "failed: KITTIWAKE_RNG_SEED=$seed $program" >>"$log"
        fi
    done
}

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
# Most tests wait more than they compute, so eight seeds share the cores, with two tests at a time each.
export -f run_seed
export built results
printf '%s\n' "${seeds[@]}" | xargs -P 8 -I '{}' bash -c 'run_seed {}'

cat "$results"/* | grep '^failed: ' && { echo "seeds: failed under some of ${#seeds[@]} seeds"; exit 1; }
passed=$(cat "$results"/* | awk '/^passed / { sum += $2 } END { print sum + 0 }')
echo "seeds: $passed tests passed under ${#seeds[@]} seeds"
