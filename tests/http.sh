#!/usr/bin/env bash
# The example `web` with clients of other people: curl, wrk, h2load and ab. The arguments are the folder of the built
# examples, such as target/release/examples, and the seconds that each load lasts, 3 if not given. Without the clients
# the script says so, and does nothing.
set -euo pipefail
: "${1:?usage: $0 FOLDER_OF_EXAMPLES [SECONDS]}"
seconds=${2:-3}

for client in curl wrk h2load ab; do
    command -v "$client" >/dev/null || { echo "$client is missing: web is not tried with it"; exit 0; }
done
. "$(dirname "$0")/support/programs.sh"

site=$folder/site
mkdir "$site"
echo '<p>a page' >"$site/index.html"
head -c $((100 << 20)) /dev/urandom >"$site/large"
mkfifo "$site/fifo"
head -c 1999 "$site/large" | tail -c 1000 >"$folder/part"
tail -c 1000 "$site/large" >"$folder/end"

fetch=(curl -sS --fail --max-time 60)

# curl_clients: one request of each kind, by both protocols.
curl_clients() {
    local url=http://$at http2=--http2-prior-knowledge
    returns "$site/index.html" "${fetch[@]}" "$url/"
    "${fetch[@]}" -v "$url/" "$url/index.html" >/dev/null 2>"$folder/curl.err"
    [ "$(grep -c 'Re-using existing connection' "$folder/curl.err")" = 1 ] || fail "curl must use its connection again"
    returns "$folder/part" "${fetch[@]}" -r 999-1998 "$url/large"
    returns "$folder/part" "${fetch[@]}" $http2 -r 999-1998 "$url/large"
    returns "$folder/end" "${fetch[@]}" -r -1000 "$url/large"
    head -c 50000000 "$site/large" >"$folder/resumed"
    "${fetch[@]}" -C - -o "$folder/resumed" "$url/large"
    cmp "$site/large" "$folder/resumed" || fail "curl must get the rest of a file"
    for protocol in --http1.1 $http2; do
        returns "$site/large" "${fetch[@]}" $protocol "$url/large"
        # curl reads the response while it sends.
        returns "$site/large" "${fetch[@]}" $protocol --data-binary "@$site/large" "$url/echo"
    done
    returns "$site/large" "${fetch[@]}" -H 'Transfer-Encoding: chunked' -T "$site/large" -X POST "$url/echo"
    # The answer begins before the body is read, so the client is not told to continue, and continues by itself.
    returns "$folder/part" "${fetch[@]}" -H 'Expect: 100-continue' --data-binary "@$folder/part" "$url/echo"
    [ "$(curl -sS --max-time 60 -H 'Expect: 100-continue' -d body -o /dev/null -w '%{http_code}' "$url/")" = 405 ] \
        || fail "a body that the server does not read must not hold up the answer"
    # RFC 9110, 14.2 and 13.1.5. The server has no validators, so no If-Range is true.
    [ "$(curl -sSI -r 0-3 --max-time 60 -o /dev/null -w '%{http_code}' "$url/")" = 200 ] || fail "a range is for GET, and not for HEAD"
    [ "$(curl -sS -r 0-3 -H 'If-Range: "v1"' --max-time 60 -o /dev/null -w '%{http_code}' "$url/")" = 200 ] \
        || fail "a range of one version of the file must be the whole file"
    [ "$(curl -sS --max-time 60 -o /dev/null -w '%{http_code}' "$url/no-such-file")" = 404 ] || fail "a missing file must be a 404"
    [ "$(curl -sS --max-time 60 -o /dev/null -w '%{http_code}' "$url/fifo")" = 404 ] || fail "a FIFO must be a 404"
    [ "$(curl -sS --max-time 60 -o /dev/null -w '%{http_code}' "$url/large/x")" = 404 ] || fail "a file is no folder"
    for protocol in --http1.1 $http2; do
        [ "$(curl -sSI $protocol --max-time 60 -o /dev/null -w '%{http_code}' "$url/no-such-file")" = 404 ] \
            || fail "HEAD of a missing file must be a 404 without a body, by $protocol"
    done
    [ "$("${fetch[@]}" -I "$url/large" | tr -d '\r' | sed -n 's/^content-length: //p')" = $((100 << 20)) ] \
        || fail "HEAD must tell the length of a file"
    echo "web, $workers: curl gets what it asks for"
}

# reports CLIENT PATTERN: fails unless the last output of the client has a line that matches.
reports() { grep -Eq "$2" "$folder/$1.out" || fail "$1 must report: $2"; }

# load CLIENT ARGUMENT..: runs a client, and prints its rate.
load() {
    timeout $((seconds + 30)) "$@" >"$folder/$1.out" 2>"$folder/$1.err" || fail "$* has ended with status $?"
    echo "web, $workers: $*: $(sed -En 's/^(Requests.sec: *|finished in [^,]*, |Requests per second: *)([0-9.]+).*/\2/p' "$folder/$1.out") requests a second"
}

load_clients() {
    local url=http://$at/
    load wrk -t 1 -c 64 -d "$seconds" --timeout 20s "$url"
    reports wrk '^ *[1-9][0-9]* requests in '
    ! grep -E 'Socket errors|Non-2xx' "$folder/wrk.out" || fail "wrk has seen errors"
    for protocol in --h1 ''; do
        # shellcheck disable=SC2086
        load h2load $protocol -c 16 -m 10 -D "$seconds" "$url"
        reports h2load '^requests: .* 0 failed, 0 errored, 0 timeout$'
        reports h2load '^status codes: [1-9][0-9]* 2xx, 0 3xx, 0 4xx, 0 5xx$'
    done
    load ab -q -k -c 32 -t "$seconds" -n 1000000 "$url"
    reports ab '^Failed requests: *0$'
    # A connection for each request: not for long, because each keeps a port busy for a minute.
    load ab -q -c 32 -n 5000 "$url"
    reports ab '^Failed requests: *0$'
    reports ab '^Complete requests: *5000$'
    ! grep 'Non-2xx' "$folder/ab.out" || fail "ab has seen errors"
}

# slow_client REQUEST: sends a part of a request, and succeeds if the server then closes the connection.
slow_client() {
    exec 3<>"/dev/tcp/${at%:*}/${at##*:}"
    printf '%b' "$1" >&3
    timeout 45 cat <&3 >/dev/null
}

slow=()
for workers in 1 2; do
    start web --workers "$workers" "$site" 127.0.0.1:0
    if [ "$workers" = 1 ]; then
        # They wait for the limits of 30 seconds while the others are served.
        for request in '' 'GET / HT' 'POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf'; do
            slow_client "$request" &
            slow+=($!)
            started+=($!)
        done
    fi
    curl_clients
    load_clients
    for client in "${slow[@]}"; do
        wait "$client" || fail "a slow client must be cut off"
    done
    if [ "$workers" = 1 ]; then
        [ "$(grep -c 'does not send' "$folder/web.err")" = 3 ] || fail "web must report the slow clients"
        echo "web: slow clients are cut off"
    fi
    slow=()
    stop web "$pid" '[0-9]+ accepted: [0-9]+ served, [0-9]+ failed, 0 panicked, 0 open'
done
