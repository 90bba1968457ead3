#!/usr/bin/env bash
# Proves that the crate, its tests and its examples compile without a warning where the tests do not run, and that its
# unit tests pass with 32-bit pointers:
#
#   branches   on Linux with epoll, with the code of other systems (`--cfg kittiwake_portable`)
#   systems    for macOS, FreeBSD and others, with kqueue or event ports
#   pointers   for 32-bit x86 on Linux, where the unit tests run too
#   oldest     with the oldest Rust and the oldest dependencies that Cargo.toml allows
#
#     tests/proof/portability.sh [branches|systems|pointers|oldest]..
#
# Without arguments it does all four. With empty target folders and on two busy cores, `systems` takes about 15 minutes,
# most of it for std, and `oldest` 3. No test runs on another system. The suite on poll(2) in .ci/run takes the branches
# of other systems too, so that its tests run them.
set -euo pipefail
cd "$(dirname "$0")/../.."

export CARGO_INCREMENTAL=0
proof=$PWD/tests/proof
temporary=$(mktemp -d)
trap 'rm -r "$temporary"' EXIT
checked=0 skipped=0

skip() {
    echo "skipped: $1: $2"
    skipped=$((skipped + 1))
}

check() {
    local name=$1
    shift
    echo "-- $name"
    "$@" || { echo "portability: $name failed"; exit 1; }
    checked=$((checked + 1))
}

branches() {
    export CARGO_TARGET_DIR=target-portable
    RUSTFLAGS="--cfg kittiwake_portable" \
        check "Linux with the branches of other systems" cargo clippy --all-targets --all-features -- -D warnings
}

systems() {
    if ! . "$proof/rust_with_source"; then
        skip systems "there is no compiler with the source of std"
        return
    fi
    export CARGO_TARGET_DIR=target-systems
    local system
    for system in x86_64-apple-darwin x86_64-unknown-freebsd; do
        RUSTFLAGS="-D warnings" check "$system, tests and examples" \
            with_source cargo check -Zbuild-std=std,test --target "$system" --all-features --all-targets
    done
    for system in x86_64-unknown-netbsd x86_64-unknown-openbsd x86_64-unknown-illumos x86_64-linux-android; do
        RUSTFLAGS="-D warnings" check "$system" \
            with_source cargo check -Zbuild-std=std,test --target "$system" --all-features
    done
}

pointers() {
    if ! . "$proof/rust_with_source"; then
        skip pointers "there is no compiler with the source of std"
        return
    fi
    local linked=$temporary/linked
    can_link() { echo "int main() { return 0; }" | cc -m32 -x c -o "$linked" - 2>/dev/null && "$linked"; }
    can_link || { apt-get update -q && apt-get install -qy --no-install-recommends gcc-multilib; } || true
    local can_run=false
    if can_link; then can_run=true; fi
    export CARGO_TARGET_DIR=target-systems
    RUSTFLAGS="-D warnings" check "i686-unknown-linux-gnu, tests and examples" \
        with_source cargo check -Zbuild-std=std,test --target i686-unknown-linux-gnu --all-features --all-targets
    if $can_run; then
        check "the unit tests on i686-unknown-linux-gnu" \
            with_source cargo test -Zbuild-std=std,test --target i686-unknown-linux-gnu --all-features --lib
    else
        skip "unit tests on i686-unknown-linux-gnu" "this machine cannot link or run programs of 32 bits"
    fi
}

# Puts the oldest Rust that Cargo.toml allows into the folder $1, if Debian has it.
oldest_rust() {
    local version packages
    version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    apt-get update -q
    packages=("rustc-web=$version*" "libstd-rust-web-dev=$version*" "libstd-rust-web-$version")
    packages+=("$(apt-cache depends "libstd-rust-web-$version" | sed -n 's/^ *Depends: \(libllvm.*\)/\1/p')")
    (cd "$1" && apt-get download -q "${packages[@]}" && for package in *.deb; do dpkg -x "$package" .; done) || return 1
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$1/usr/lib/$(uname -m)-linux-gnu" "$1/usr/bin/rustc" >"$1/rustc"
    chmod +x "$1/rustc"
    "$1/rustc" --version
}

oldest() {
    local folder=$temporary/oldest
    mkdir -p "$folder/rust" "$folder/crate"
    if oldest_rust "$folder/rust"; then
        export RUSTC=$folder/rust/rustc
    else
        skip "the oldest Rust" "Debian's packages do not have it, so the present one is used"
    fi
    cp -r Cargo.toml README.md docs examples macros src tests "$folder/crate"
    export CARGO_TARGET_DIR=$PWD/target-oldest
    # A stable cargo takes the option only with this variable.
    (cd "$folder/crate" && RUSTC_BOOTSTRAP=1 cargo update -Z direct-minimal-versions)
    # The tests call functions of std that are younger, such as `io::pipe` of 1.87. So the present Rust takes them.
    check "the oldest Rust and dependencies, examples" \
        cargo check --all-features --lib --examples --manifest-path "$folder/crate/Cargo.toml"
    check "the oldest Rust, and the dependencies of Cargo.lock" cargo check --locked --all-features
    unset RUSTC
    check "the oldest dependencies, tests and examples" \
        cargo check --all-features --all-targets --manifest-path "$folder/crate/Cargo.toml"
}

[ $# -gt 0 ] || set -- branches systems pointers oldest
for part; do
    # In a shell of its own, because a part exports variables that the next one must not have.
    ("$part"; echo "$checked $skipped" >"$temporary/counts")
    read -r checked skipped <"$temporary/counts"
done
echo "portability: $checked cases passed, $skipped skipped"
