#!/usr/bin/env bash
# A long run of every fuzz target, at least as many executions in all as the argument says:
#
#     fuzz/campaign.sh 100000000
#
# Inputs that reach new code are kept below target/fuzz-corpus and minimized at the end. A finding is
# left in fuzz/artifacts, and makes this fail.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

executions=${1:?the number of executions of all targets together}
# Parts in a thousand, so that each target has about the same processor time: an input of `wire` is
# one message, and one of `loopback` is a whole session.
shares='client_negotiation 190
client_transmission 12
loopback 10
object_format 60
server_negotiation 48
server_transmission 10
uri 270
wire 400'

corpora=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz-corpus

campaign() {
    local name=$1 share=$2 corpus=$corpora/$1 log=$corpora/$1.log status=0
    local runs=$((executions * share / 1000 + 1))
    mkdir -p "$corpus"
    cargo fuzz run --sanitizer none "$name" "$corpus" "fuzz/corpus/$name" -- \
        -runs="$runs" -timeout=10 -verbosity=1 -print_final_stats=1 >"$log" 2>&1 || status=$?
    local found done reached
    found=$(find "$corpus" -type f | wc -l)
    done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    reached=$(grep -E '^#[0-9]+.*(DONE|pulse|REDUCE|NEW)' "$log" | tail -n 1 | grep -oE 'cov: [0-9]+ ft: [0-9]+')
    if ((status == 0)); then
        cargo fuzz cmin --sanitizer none "$name" "$corpus" >>"$log" 2>&1 || status=$?
    fi
    printf '%-20s %10s executions, %s, %5d inputs, %5d of them needed%s\n' "$name" "$done" "$reached" \
        "$found" "$(find "$corpus" -type f | wc -l)" "$( ((status == 0)) || printf ', FAILED: see %s' "$log")"
    return "$status"
}

if [[ $(cargo fuzz list) != "$(cut -d ' ' -f 1 <<<"$shares")" ]]; then
    printf 'each target needs a share: %s\n' "$(cargo fuzz list | paste -sd ' ')"
    exit 1
fi
cargo fuzz build --sanitizer none
export executions corpora
export -f campaign
xargs -P "$(nproc)" -L 1 bash -c 'campaign "$0" "$1"' <<<"$shares"
