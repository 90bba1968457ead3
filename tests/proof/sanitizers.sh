#!/usr/bin/env bash
# Proves that the crate and its dependencies use memory as they may, and that no test leaks any:
#
#   address    the suite under AddressSanitizer and LeakSanitizer, on nightly Rust
#   thread     the tests of the executor under ThreadSanitizer, with a std that is instrumented too
#   memcheck   random connections among runtimes that come and go, and sets of tasks, under valgrind
#
#     tests/proof/sanitizers.sh [address|thread|memcheck]..
#
# Without arguments it runs all three, in about 5 minutes, 5 minutes and 1 minute on two cores. `thread` builds std too.
# leaks.supp lists the leaks that are on purpose. No report of a race is suppressed.
set -euo pipefail
cd "$(dirname "$0")/../.."

export CARGO_INCREMENTAL=0
proof=$PWD/tests/proof
. "$proof/test_programs"
host=$(rustc -vV | sed -n 's/^host: //p')
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 skipped=0

skip() {
    echo "skipped: $1: $2"
    skipped=$((skipped + 1))
}

# Adds up the numbers before a word in the results of test programs.
sum() {
    awk -v word="$1" '/^test result: / { for (i = 2; i <= NF; i++) if (index($i, word) == 1) sum += $(i - 1) } END { print sum + 0 }' "$log"
}

# Runs a command that runs tests, and counts the tests that passed and those that it left out.
count_tests() {
    local status=0
    "$@" 2>&1 | tee "$log" || status=$?
    passed=$((passed + $(sum passed)))
    skipped=$((skipped + $(sum filtered) + $(sum ignored)))
    return "$status"
}

address() {
    if ! cargo +nightly --version >/dev/null 2>&1; then
        skip address "there is no nightly toolchain"
        return
    fi
    # compile and layers run no code of the crate. The others start the examples, which this does not build.
    local name not_built=(compile layers examples examples_net faults_net shutdown_loss stdio)
    test_programs_but "${not_built[@]}"
    for name in "${not_built[@]}"; do skip "$name" "see sanitizers.sh"; done
    local left_out=(
        # LeakSanitizer cannot work under strace.
        --skip interrupted_transfers_are_repeated --skip runtimes_survive_refused_threads
        --skip closed_repeats_interrupted_ppoll --skip flow_info_is_as_with_std
        # These two start an example.
        --skip server_without_reactor_ends_with_error --skip refused_poll_ends_pooled_write
        # It measures the resident memory, and the sanitizer keeps what is freed.
        --skip hundred_thousand_connections_leave_nothing
    )
    # Nightly deprecates functions before the oldest supported Rust has others.
    RUSTFLAGS="-Zsanitizer=address -Adeprecated" CARGO_TARGET_DIR=target-asan CARGO_PROFILE_DEV_DEBUG=line-tables-only \
        ASAN_OPTIONS=detect_leaks=1 LSAN_OPTIONS="suppressions=$proof/leaks.supp:print_suppressions=0" \
        count_tests cargo +nightly test --target "$host" --all-features --no-fail-fast --lib "${programs[@]}" -- "${left_out[@]}"
}

# Reports a race that is in a program on purpose. A sanitizer that sees none would pass all tests.
planted_race() {
    local folder report
    folder=$(mktemp -d)
    cargo init -q --vcs none --name planted "$folder"
    cat >"$folder/src/main.rs" <<'END'
static mut RACED: u64 = 0;

fn main() {
    let other = std::thread::spawn(|| unsafe { RACED += 1 });
    unsafe { RACED += 1 };
    other.join().unwrap();
}
END
    report=$("$@" --manifest-path "$folder/Cargo.toml" 2>&1) || true
    rm -r "$folder"
    [[ $report == *"WARNING: ThreadSanitizer: data race"*"planted::main"* ]] || { echo "$report"; return 1; }
}

# A race is reported wherever ThreadSanitizer does not see how two threads synchronise, so std must be compiled with it
# too. Its source comes with Debian's compiler, and the sanitizer's own library with nightly Rust.
thread() {
    local runtime
    runtime=$(echo "$(rustc +nightly --print sysroot 2>/dev/null)"/lib/rustlib/"$host"/lib/librustc-*_rt.tsan.a)
    if ! [ -e "$runtime" ]; then
        skip thread "there is no nightly toolchain with ThreadSanitizer"
        return
    fi
    if ! . "$proof/rust_with_source"; then
        skip thread "there is no compiler with the source of std"
        return
    fi
    local instrumented=(-Zbuild-std=std,test --target "$host" --config 'profile.dev.package."*".opt-level=1')
    # GNU ld takes the sanitizer's versions of libc's functions only from a library that comes before libc.
    local -x RUSTFLAGS="-Zsanitizer=thread -Zexternal-clangrt -Zpre-link-args=-Wl,--whole-archive,$runtime,--no-whole-archive"
    # To optimise the tests too would take four times as long to build. Without that, their futures need larger stacks.
    local -x CARGO_TARGET_DIR=target-tsan CARGO_PROFILE_DEV_DEBUG=line-tables-only RUST_MIN_STACK=16777216
    # An instrumented std takes a minute for a backtrace, and many tests panic on purpose.
    local -x RUST_BACKTRACE=0
    planted_race with_source cargo run "${instrumented[@]}" || { echo "ThreadSanitizer does not report a planted race"; return 1; }
    passed=$((passed + 1))
    count_tests with_source cargo test "${instrumented[@]}" --all-features --no-fail-fast \
        --lib --test blocking --test join_set --test task --test waker --test wakers --test workers
}

memcheck() {
    command -v valgrind >/dev/null || { apt-get update -q && apt-get install -qy valgrind; } || true
    if ! command -v valgrind >/dev/null; then
        skip memcheck "valgrind cannot be installed"
        return
    fi
    local valgrind="valgrind -q --error-exitcode=9 --fair-sched=yes --leak-check=full"
    valgrind+=" --errors-for-leak-kinds=definite,indirect --show-leak-kinds=definite,indirect"
    local runner
    runner=CARGO_TARGET_$(echo "$host" | tr 'a-z-' 'A-Z_')_RUNNER
    export KITTIWAKE_SOAK_SECONDS=10
    # Three tests do too much for a program that runs some thirty times as slowly.
    local left_out=(--skip joining_thread_misses_no_end --skip ten_thousand_members_are_joined_once)
    left_out+=(--skip spike_leaves_no_memory_in_set)
    count_tests env "$runner=$valgrind" cargo test --all-features --target-dir "${CARGO_TARGET_DIR:-target}" \
        --test soak --test join_set -- --test-threads=1 "${left_out[@]}"
}

[ $# -gt 0 ] || set -- address thread memcheck
failed=()
for part; do
    echo "-- $part"
    "$part" || failed+=("$part")
done
[ ${#failed[@]} -eq 0 ] || { echo "sanitizers: ${failed[*]} failed"; exit 1; }
echo "sanitizers: $passed cases passed, $skipped skipped"
