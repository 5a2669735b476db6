#!/usr/bin/env bash
# Runs the models of threads under so many schedules each (1000 unless the argument says more):
#
#     schedules/run.sh 100000
#
# The code is the one that is published, copied below the target directory. There the locks,
# atomics and threads of `std` are replaced by those of `schedules/std`, so that no line of it has to
# know. A second argument selects models by a part of their names.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
tree=$target/schedules

mkdir -p "$tree"
# Copies keep their times, so that only changed files are compiled again.
for part in nbd-proto nbd-io nbd-blocking schedules/std schedules/models; do
    rm -rf "${tree:?}/${part##*/}"
    cp -rp "$part" "$tree/"
done
rm -rf "$tree/nbd-proto/nostd-check" "$tree/nbd-blocking/Cargo.toml"
find "$tree/nbd-io/src" "$tree/nbd-blocking/src" -name '*.rs' | while read -r file; do
    touch -r "$file" "$tree/time"
    sed -Ei 's/\bstd::(sync|thread)\b/schedules_std::\1/g; s/\buse std::\{/use schedules_std::{/' "$file"
    touch -r "$tree/time" "$file"
done
# The file with the last mistake is compiled again without it.
[[ ! -f $tree/mistaken ]] || touch "$(<"$tree/mistaken")"
rm -f "$tree/mistaken"
# A mistake on purpose: a file, and a script for sed.
if [[ -n ${MISTAKE:-} ]]; then
    file=$tree/${MISTAKE%% *}
    printf '%s\n' "$file" >"$tree/mistaken"
    cp -p "$file" "$tree/before"
    sed -Ei "${MISTAKE#* }" "$file"
    ! cmp -s "$file" "$tree/before" || { printf 'this changes nothing: %s\n' "$MISTAKE" && exit 2; }
fi
if grep -rnE '(parking_lot|crossbeam|core::sync)::' "$tree/nbd-io/src" "$tree/nbd-blocking/src"; then
    printf 'these locks are not under the control of the models\n'
    exit 1
fi
sed -i '/^\[dependencies\]/a schedules-std = { path = "../std" }' "$tree/nbd-io/Cargo.toml"
sed -E 's/^members = .*/members = ["nbd-proto", "nbd-io", "std", "models"]/; /^exclude = /d' Cargo.toml >"$tree/Cargo.toml"
[[ -f $tree/Cargo.lock ]] || cp Cargo.lock "$tree/"
RUST_BACKTRACE=0 cargo run --quiet --manifest-path "$tree/Cargo.toml" --target-dir "$tree/build" --package schedules \
    -- "${1:-1000}" "${2:-}"
