#!/usr/bin/env bash
# The slow checks. Each part is a script in tests/proof/ that can be run alone, too.
#
#     tests/proof.sh             all parts
#     tests/proof.sh PART..      some of: faults seeds busy sanitizers portability alone baselines soak
#
# A part that the machine cannot run prints a line "skipped: ..". The exit status is that of the worst part.
set -uo pipefail
cd "$(dirname "$0")/.."

parts=(faults seeds busy sanitizers portability alone baselines soak)
[ $# -eq 0 ] || parts=("$@")
for part in "${parts[@]}"; do
    [ -x "tests/proof/$part.sh" ] || { echo "tests/proof.sh: no part \"$part\" in tests/proof/" >&2; exit 2; }
done

failed=0
report=$(mktemp)
trap 'rm -f "$report" "$report.part"' EXIT
for part in "${parts[@]}"; do
    printf '\n-- %s\n' "$part"
    begin=$SECONDS
    "tests/proof/$part.sh" 2>&1 | tee "$report.part"
    status=${PIPESTATUS[0]}
    result=$(tail -n 1 "$report.part")
    if [ "$status" -ne 0 ]; then
        failed=1
        result="FAILED, status $status"
    fi
    printf '%-12s %4d s  %s\n' "$part" $((SECONDS - begin)) "$result" >>"$report"
    grep -a '^skipped: ' "$report.part" | sed 's/^/                     /' >>"$report"
done
printf '\n-- the slow checks\n'
cat "$report"
exit "$failed"
