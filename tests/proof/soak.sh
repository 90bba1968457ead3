#!/usr/bin/env bash
# Random servers and clients on loopback, with every byte checked: the example soak, whose docs say what it finds.
# Usage: tests/proof/soak.sh [MINUTES] [SEED]. MINUTES is 1 if not given, and SEED comes from the clock. The run takes
# MINUTES and some seconds, and needs about 10,200 open descriptors. With fewer it opens fewer connections.
set -euo pipefail
cd "$(dirname "$0")/../.."

minutes=${1:-1}
seed=${2:-$(date +%s)}
connections=5000

allowed=$(ulimit -Hn)
if [ "$allowed" != unlimited ] && [ "$allowed" -lt $((2 * connections + 200)) ]; then
    echo "skipped: $connections connections: only $allowed descriptors are allowed"
    connections=$(((allowed - 200) / 2))
fi

cargo build --release --example soak
# The run has limits of its own, which end it much earlier. This one catches a run that ignores them.
limit=$(awk "BEGIN { print int($minutes * 60 + 300) }")
timeout "$limit" "${CARGO_TARGET_DIR:-target}/release/examples/soak" \
    --minutes "$minutes" --seed "$seed" --connections "$connections"
