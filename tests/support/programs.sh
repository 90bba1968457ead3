# Functions for scripts that run the examples as a user runs them. The script's first argument is the folder of the built
# examples. What a script starts, and its $folder, end with the script.

examples=$(cd "$1" && pwd)
folder=$(mktemp -d)
started=()
# The processes that this script has started, and no others.
trap 'for pid in "${started[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done; rm -rf "$folder"' EXIT

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    tail -n 5 "$folder"/*.out "$folder"/*.err >&2
    exit 1
}

# until_true WHAT COMMAND..: repeats the command until it succeeds.
until_true() {
    for _ in $(seq 400); do
        if "${@:2}" 2>/dev/null; then return; fi
        sleep 0.05
    done
    fail "$1: not after 20 seconds"
}

# start NAME ARGUMENT..: starts an example. Sets $pid, and $at to the address or path that it listens on.
start() {
    rm -f "$folder/$1.out"
    "$examples/$1" "${@:2}" >"$folder/$1.out" 2>"$folder/$1.err" &
    pid=$!
    started+=("$pid")
    until_true "$1 listens" grep -q "^$1: listening on " "$folder/$1.out"
    at=$(sed -n "s/^$1: listening on //p" "$folder/$1.out")
}

# stop NAME PID REPORT: interrupts an example, which must end with status 0 and print the report, a regular expression.
stop() {
    kill -INT "$2"
    timeout 20 tail --pid="$2" -f /dev/null || fail "$1 does not end"
    wait "$2" || fail "$1 has ended with status $?"
    grep -Eq "^$1: $3" "$folder/$1.out" || fail "$1 must report: $3"
    echo "$1: as expected"
}

# returns EXPECTED CLIENT..: fails unless the client, fed from stdin, prints the contents of the file EXPECTED.
returns() {
    timeout 20 "${@:2}" >"$folder/got" || fail "${*:2} has ended with status $?"
    cmp "$1" "$folder/got" || fail "${*:2} has printed something else"
}
