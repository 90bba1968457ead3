#!/usr/bin/env bash
# Restarts of the example `web` under load, behind HAProxy and without it: no request fails. The argument is the folder of
# the built examples, such as target/release/examples. The units and HAProxy's configuration come from docs/deploy.md.
# Without the programs that it needs the script says so, and does nothing.
#
# systemd-socket-activate opens each port, as systemd does for a socket unit. It starts the function `keep`, which starts
# `web` again whenever it ends, as systemd does for a service.
set -euo pipefail

: "${1:?usage: $0 FOLDER_OF_EXAMPLES}"
# Debian has HAProxy there.
PATH=$PATH:/usr/sbin
for program in haproxy wrk curl socat setpriv systemd-socket-activate systemd-analyze; do
    command -v "$program" >/dev/null || { echo "$program is missing: restarts are not tried"; exit 0; }
done

. "$(dirname "$0")/support/programs.sh"
document=$(dirname "$0")/../docs/deploy.md
rounds=3
# An address of this run's own. So the ports of the document are free.
address=127.$((RANDOM % 200 + 20)).$((RANDOM % 256)).$((RANDOM % 254 + 1))

# from_document NAME: prints the code block whose first line is a comment with the path of the file NAME.
from_document() {
    awk -v name="/$1" '
        /^```/ { inside = !inside; first = inside; chosen = 0; next }
        first { first = 0; chosen = /^# \// && substr($0, length($0) - length(name) + 1) == name }
        inside && chosen { print; found = 1 }
        END { exit !found }' "$document" || fail "docs/deploy.md has no file $1"
}

# setting NAME: prints a setting of the units.
setting() { sed -n "s/^$1=//p" "$folder"/web@7001.s*; }

# keep NAME: starts `web` again and again with descriptor 3, the listening socket. systemd-socket-activate runs this.
keep() {
    unset LISTEN_PID LISTEN_FDNAMES
    for ((start = 1; ; start++)); do
        # The server ends with this process, also when the script has failed.
        LISTEN_FDS=1 setpriv --pdeathsig KILL "$examples/web" "$folder/site" \
            >"$folder/$1.$start.out" 2>>"$folder/$1.err" &
        echo "$! $start" >"$folder/$1.new" && mv "$folder/$1.new" "$folder/$1.running"
        wait $! || { echo "web has ended with status $?" >>"$folder/$1.err"; exit 1; }
    done
}

# serve NAME PORT: opens a port, and starts a server on it.
serve() {
    local at
    at=$(setting ListenStream) && at=${at//%i/$2} && at=${at/127.0.0.1/$address}
    (
        # A container may allow less.
        ulimit -n "$(setting LimitNOFILE)" || true
        exec systemd-socket-activate --listen="$at" --setenv=examples="$examples" --setenv=folder="$folder" \
            bash "$folder/keep" "$1" 2>"$folder/$1.err"
    ) &
    started+=($!)
    disown
    until_true "$1 listens" grep -q "^Listening on" "$folder/$1.err"
    ask "$at"
}

pid_of() { cut -d ' ' -f 1 "$folder/$1.running"; }
start_of() { cut -d ' ' -f 2 "$folder/$1.running"; }

# ask AT: sends some requests on one connection, and fails if one fails.
ask() { curl --silent --show-error --fail --max-time 20 "http://$1/?[1-300]" >/dev/null || fail "$1 does not answer"; }

has_ended() { ! kill -0 "$1"; }

# restart NAME AT: sends SIGTERM, waits as long as the unit lets systemd wait, and until the new process has answered.
restart() {
    ask "$2"
    local pid start begun=$EPOCHREALTIME
    pid=$(pid_of "$1") start=$(start_of "$1")
    kill -TERM "$pid"
    timeout "$(setting TimeoutStopSec)" tail --pid="$pid" --sleep-interval=0.01 -f /dev/null || fail "$1 does not end"
    local ended=$EPOCHREALTIME
    grep -Eq '^web: [0-9]+ accepted: [0-9]+ served, 0 failed, 0 panicked, 0 open; 0 refused$' "$folder/$1.$start.out" \
        || fail "$1 has ended in another way: $(tail -n 1 "$folder/$1.$start.out")"
    until_true "$1 is started again" grep -q '^web: listening' "$folder/$1.$((start + 1)).out"
    ask "$2"
    echo "$1: ended after $(((${ended/./} - ${begun/./}) / 1000)) ms; $(tail -n 1 "$folder/$1.$start.out")"
}

# load NAME ARGUMENT..: starts wrk, until `unload`.
load() {
    wrk --threads 1 --duration 300s --timeout 20s "${@:2}" >"$folder/$1.out" 2>"$folder/$1.err" &
    loads+=("$1:$!")
    started+=($!)
}

# unload: ends wrk, and fails if it has seen a request fail.
unload() {
    local load
    for load in "${loads[@]}"; do
        kill -INT "${load#*:}" && wait "${load#*:}" || fail "wrk has ended with status $?"
        load=$folder/${load%:*}.out
        ! grep -E 'Socket errors|Non-2xx' "$load" || fail "requests of $(basename "$load" .out) have failed"
        grep -Eq '^ +[1-9][0-9]* requests in' "$load" || fail "wrk has made no request"
        echo "$(basename "$load" .out):$(grep ' requests in ' "$load"), none failed"
    done
    loads=()
}
loads=()

{ declare -f keep && echo 'keep "$1"'; } >"$folder/keep"
mkdir "$folder/site"
echo hello >"$folder/site/index.html"
# wrk sends these to /echo. HAProxy does not repeat them, and neither does wrk.
echo 'wrk.method = "POST" wrk.body = string.rep("bytes ", 100)' >"$folder/post.lua"

# The units.
for unit in socket service; do from_document "web@.$unit" >"$folder/web@7001.$unit"; done
sed "s|^ExecStart=[^ ]*|ExecStart=$examples/web|" -i "$folder/web@7001.service"
[ "$(setting TimeoutStopSec)" -gt 25 ] || fail "systemd must wait for longer than the drain timeout"
systemd-analyze verify --man=no "$folder/web@7001.socket" "$folder/web@7001.service" >"$folder/verify.out" 2>&1 \
    || fail "systemd-analyze finds faults in the units"
! grep "$folder" "$folder/verify.out" || fail "systemd-analyze finds faults in the units"
systemd-analyze security --offline=yes --no-pager --threshold=20 "$folder/web@7001.service" >"$folder/security.out" 2>&1 \
    || fail "the unit must be safe: $(tail -n 1 "$folder/security.out")"
echo "the units: $(tail -n 1 "$folder/security.out")"

# Without a proxy: all that the clients of one server notice is the time of the restart.
serve alone 7003
load direct --connections 32 "http://$address:7003/"
load direct-posts --connections 8 --script "$folder/post.lua" "http://$address:7003/echo"
load direct-slow --connections 8 "http://$address:7003/slow"
for _ in $(seq "$rounds"); do restart alone "$address:7003"; done
unload

# HAProxy, without the parts of its configuration that need root or many descriptors.
serve one 7001
serve two 7002
public=$address:7000
from_document haproxy.cfg | sed -e "s|127\.0\.0\.1|$address|; s|bind :80\$|bind $public|; s|/run/haproxy|$folder|" \
    -e '/^    \(user\|group\|maxconn\) /d' >"$folder/haproxy.cfg"
haproxy -c -q -f "$folder/haproxy.cfg" || fail "HAProxy finds faults in its configuration"
haproxy -db -f "$folder/haproxy.cfg" >"$folder/haproxy.out" 2>&1 &
started+=($!)
disown
until_true "HAProxy listens" curl --silent --fail --output /dev/null "http://$public/"

load proxied --connections 32 "http://$public/"
load proxied-posts --connections 8 --script "$folder/post.lua" "http://$public/echo"
load proxied-slow --connections 8 "http://$public/slow"
for _ in $(seq "$rounds"); do
    restart one "$address:7001"
    restart two "$address:7002"
done
unload
echo "show stat" | socat - "UNIX-CONNECT:$folder/admin.sock" | awk -F , '
    NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
    $2 == "one" || $2 == "two" || $2 == "FRONTEND" {
        printf "HAProxy, %s:", $2
        n = split("hrsp_2xx hrsp_5xx econ eresp wretr wredis cli_abrt srv_abrt", names, " ")
        for (i = 1; i <= n; i++) printf " %s %d", names[i], $column[names[i]]
        print ""
    }'
