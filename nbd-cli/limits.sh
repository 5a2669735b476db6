#!/bin/sh
# Builds the command `nbd` as people install it, and fails if it is larger, or takes longer to start,
# than it may. Arguments are cargo's, such as `--target x86_64-unknown-linux-musl`.
set -eu
cd "$(dirname "$0")/.."

bytes=8000000
microseconds=5000
# The best of so many runs counts, since other work of the machine only ever adds to it.
runs=50

target=${CARGO_TARGET_DIR:-target}
triple=
want=
for argument; do
    case $argument in
        --target=*) triple=${argument#--target=} ;;
        --target) want=1; continue ;;
        *) if [ "$want" ]; then triple=$argument; fi ;;
    esac
    want=
done
cargo build --release -p nbd-cli "$@"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
nbd=$scratch/nbd
strip -o "$nbd" "$target/${triple:+$triple/}release/nbd"

failed=0
check() { # WHAT IS LIMIT UNIT
    echo "$1: $2 $4, limit $3"
    if [ "$2" -gt "$3" ]; then
        echo "$1: too much" >&2
        failed=1
    fi
}

start() { # ARGUMENTS: prints microseconds
    best=
    for _ in $(seq "$runs"); do
        before=$(date +%s%N)
        "$nbd" "$@" >/dev/null
        after=$(date +%s%N)
        took=$(((after - before) / 1000))
        if [ -z "$best" ] || [ "$took" -lt "$best" ]; then
            best=$took
        fi
    done
    echo "$best"
}

check "size without symbols" "$(wc -c <"$nbd")" "$bytes" bytes
check "nbd --version" "$(start --version)" "$microseconds" µs
for command in info list map; do
    check "nbd $command without a URI" "$(start "$command")" "$microseconds" µs
done
socket=$scratch/socket
"$nbd" serve --quiet --unix "$socket" --memory 64M &
server=$!
trap 'kill "$server"; wait "$server"; rm -rf "$scratch"' EXIT
until [ -S "$socket" ]; do sleep 0.01; done
check "nbd info of a server" "$(start info "nbd+unix:///?socket=$socket")" "$microseconds" µs
exit "$failed"
