#!/usr/bin/env bash
# The examples, with clients of other people: socat, OpenBSD's nc, redis-cli and redis-benchmark. The argument is the
# folder of the built examples, such as target/release/examples. Where clients are missing, the script says so, and tries
# only what it can.
set -euo pipefail
: "${1:?usage: $0 FOLDER_OF_EXAMPLES}"

for client in socat nc; do
    command -v "$client" >/dev/null || { echo "$client is missing: the examples are not tried with it"; exit 0; }
done
nc -h 2>&1 | grep -q OpenBSD || { echo "nc is not OpenBSD's: the examples are not tried with it"; exit 0; }

. "$(dirname "$0")/support/programs.sh"

bytes=$folder/bytes
head -c 1000000 /dev/urandom >"$bytes"
head -c 1400 "$bytes" >"$folder/datagram"

start echo 127.0.0.1:0
echo_pid=$pid echo_at=$at
start proxy 127.0.0.1:0 "$echo_at"
for address in "$echo_at" "$at"; do
    returns "$bytes" nc -N "${address%:*}" "${address##*:}" <"$bytes"
    returns "$bytes" socat -t 20 - "TCP:$address" <"$bytes"
done
stop proxy "$pid" '2 accepted: 2 served'
stop echo "$echo_pid" '4 accepted: 4 served'

start kv 127.0.0.1:0
printf 'set bird 60 kittiwake\nget bird\ndel bird\nget bird\nstats\n' >"$folder/requests"
printf 'ok\nvalue kittiwake\nok\nnone\n0 keys, 1 clients\n' >"$folder/replies"
returns "$folder/replies" nc -N "${at%:*}" "${at##*:}" <"$folder/requests"
sed 's/$/\r/' "$folder/requests" | returns "$folder/replies" socat -t 20 - "TCP:$at"
stop kv "$pid" '2 accepted: 2 served'

start chat 127.0.0.1:0
# A client reads of those that come after it. So clients come and go until both have read of one.
visit() {
    timeout 20 nc -N "${at%:*}" "${at##*:}" </dev/null >/dev/null
    grep -q 'has joined$' "$folder/nc.out" && grep -q 'has joined$' "$folder/socat.out"
}
nc -d "${at%:*}" "${at##*:}" >"$folder/nc.out" &
started+=($!)
socat -u "TCP:$at" STDOUT >"$folder/socat.out" &
started+=($!)
until_true "nc and socat read who joins" visit
printf 'hello\n' | timeout 20 nc -N "${at%:*}" "${at##*:}" >/dev/null
for client in nc socat; do
    until_true "$client reads the line" grep -Eq '^127.0.0.1:[0-9]+: hello$' "$folder/$client.out"
done
stop chat "$pid" '[0-9]+ accepted: [0-9]+ served, 0 failed, 0 panicked, 0 open'

start udp_echo 127.0.0.1:0
returns "$folder/datagram" nc -u -w 1 "${at%:*}" "${at##*:}" <"$folder/datagram"
returns "$folder/datagram" socat -t 1 - "UDP:$at" <"$folder/datagram"
stop udp_echo "$pid" '2 datagrams echoed, 2800 bytes; 0 replies failed'

start unix_echo "$folder/echo.socket"
returns "$bytes" nc -N -U "$at" <"$bytes"
returns "$bytes" socat -t 20 - "UNIX-CONNECT:$at" <"$bytes"
stop unix_echo "$pid" '2 accepted: 2 served'
[ ! -e "$at" ] || fail "unix_echo must remove its file"

start one_per_core --workers 4 127.0.0.1:0
# The kernel chooses the listener. The chance that it chooses the same one 32 times is 4 ^ -31.
for _ in $(seq 32); do
    printf 'hello\n' | timeout 20 nc -N "${at%:*}" "${at##*:}"
done | sed 's/:.*//' | sort | uniq -c >"$folder/workers.out"
[ "$(grep -c 'worker [0-3]$' "$folder/workers.out")" -gt 1 ] || fail "several workers must answer"
[ "$(awk '{ lines += $1 } END { print lines }' "$folder/workers.out")" = 32 ] || fail "each client must have an answer"
stop one_per_core "$pid" 'worker 3: [0-9]+ accepted: [0-9]+ served, 0 failed'

if command -v redis-cli >/dev/null && command -v redis-benchmark >/dev/null; then
    start mini_redis --workers 2 127.0.0.1:0
    address=(-h "${at%:*}" -p "${at##*:}")
    printf '%s\n' 'set bird "a small gull" ex 100' 'get bird' 'expire bird 50' 'del bird' 'get bird' \
        'echo hello' 'ping' >"$folder/requests"
    printf '%s\n' 'OK' 'a small gull' '1' '1' '' 'hello' 'PONG' >"$folder/replies"
    returns "$folder/replies" redis-cli "${address[@]}" <"$folder/requests"
    # On a slow machine less is left.
    redis-cli "${address[@]}" set bird gull ex 100 >/dev/null
    redis-cli "${address[@]}" ttl bird | grep -Eqx '100|9[0-9]' || fail "a key must have the time to live that it was set with"
    redis-cli "${address[@]}" expire bird 50 >/dev/null
    redis-cli "${address[@]}" ttl bird | grep -Eqx '50|4[0-9]' || fail "a key must have the time to live that it was given"
    redis-cli "${address[@]}" get | grep -q "^ERR wrong number of arguments" || fail "redis-cli must print an error"
    for options in "-P 1 -n 10000" "-P 16 -n 200000 -r 1000 -d 100"; do
        # shellcheck disable=SC2086 # Each word is an option.
        timeout 60 redis-benchmark "${address[@]}" -t ping,set,get --csv $options >"$folder/benchmark.out" 2>&1 \
            || fail "redis-benchmark $options has ended with status $?"
        # A line of names, and one each for both forms of ping, set and get.
        [ "$(grep -c '^"' "$folder/benchmark.out")" = 5 ] || fail "redis-benchmark $options must complete four tests"
        [ "$(wc -l <"$folder/benchmark.out")" = 5 ] || fail "redis-benchmark $options must print no error"
    done
    # redis-benchmark resets its connections.
    stop mini_redis "$pid" '[0-9]+ accepted: [0-9]+ served, [0-9]+ failed, 0 panicked, 0 open; 0 refused'
else
    echo "redis-cli or redis-benchmark is missing: mini_redis is not tried with them"
fi
