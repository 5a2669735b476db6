#!/usr/bin/env bash
# Runs a command with Ceph's gateway for S3, and a cluster of one monitor and one OSD in memory behind it:
# `with-gateway.sh DIRECTORY COMMAND...`. The command finds the store by the variables of S3 and by
# NBD_STORE, the URI of a bucket.
#
# Debian's packages are unpacked below the directory, 130 MB to fetch and 540 MB on the disk, and not
# installed: nothing else on this machine changes, and no root is needed. The cluster's data and logs are
# there, too, until the next run.

set -euo pipefail
directory=$(realpath -m "$1")
shift

unpacked=$directory/unpacked
cluster=$directory/cluster
libraries=$unpacked/usr/lib/x86_64-linux-gnu
export CEPH_CONF=$cluster/ceph.conf

unpack() {
    local archives=$directory/archives package
    mkdir -p "$archives/partial"
    : >"$directory/status"
    apt-get install --download-only -y -qq --no-install-recommends \
        -o Dir::State::status="$directory/status" \
        -o Dir::Cache::archives="$archives" \
        -o Debug::NoLocking=true radosgw ceph-mon ceph-osd ceph-common
    for package in "$archives"/*.deb; do
        dpkg-deb --extract "$package" "$unpacked"
    done
    rm -r "$archives"
}

# Runs a program of the packages.
ceph_program() {
    local program=$1
    shift
    env LD_LIBRARY_PATH="$libraries:$libraries/ceph:$unpacked/lib/x86_64-linux-gnu:$unpacked/usr/lib" \
        PYTHONPATH="$unpacked/usr/lib/python3/dist-packages" \
        timeout 120 "$unpacked/usr/bin/$program" "$@"
}

# Ends the daemons, which have left their numbers.
end() {
    local file
    for file in "$cluster"/*.pid; do
        [[ ! -e $file ]] || kill "$(<"$file")" || true
    done
}
trap end EXIT

if [[ ! -e $directory/made ]]; then
    rm -rf "$directory"
    unpack
    touch "$directory/made"
fi
rm -rf "$cluster"
mkdir -p "$cluster"/{mon,osd,rgw}

base=$((20000 + RANDOM % 10000))
gateway=127.0.0.1:$((base + 1))
cluster_id=$(</proc/sys/kernel/random/uuid)
osd_id=$(</proc/sys/kernel/random/uuid)
cat >"$CEPH_CONF" <<END
[global]
fsid = $cluster_id
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
keyring = $cluster/keyring
mon_host = v1:127.0.0.1:$base
mon_data = $cluster/mon
mon_data_avail_crit = 0
mon_data_avail_warn = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_data = $cluster/osd
osd_objectstore = memstore
osd_class_dir = $libraries/rados-classes
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
erasure_code_dir = $libraries/ceph/erasure-code
plugin_dir = $libraries/ceph
rgw_data = $cluster/rgw
rgw_frontends = beast endpoint=$gateway
run_dir = $cluster
pid_file = $cluster/\$name.pid
admin_socket = $cluster/\$name.\$pid.asok
log_file = $cluster/\$name.log
END

ceph_program ceph-authtool --create-keyring "$cluster/keyring" --gen-key -n mon. --cap mon 'allow *'
ceph_program monmaptool --create --fsid "$cluster_id" --addv a "[v1:127.0.0.1:$base]" "$cluster/monmap"
ceph_program ceph-mon -i a --mkfs --monmap "$cluster/monmap"
ceph_program ceph-mon -i a
ceph_program ceph osd new "$osd_id"
ceph_program ceph-osd -i 0 --mkfs --osd-uuid "$osd_id"
ceph_program ceph osd crush add osd.0 1 root=default
ceph_program ceph-osd -i 0
ceph_program radosgw -n client.admin
ceph_program radosgw-admin user create --uid=test --display-name=test \
    --access-key=test --secret-key=test >"$cluster/user"

export AWS_ENDPOINT=http://$gateway AWS_ALLOW_HTTP=true AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test NBD_STORE=s3://disks
# The bucket, with a signature of the second version, which takes few tools.
now=$(date -Ru)
signature=$(printf 'PUT\n\n\n%s\n/disks' "$now" | openssl sha1 -hmac test -binary | base64)
curl --silent --show-error --fail --retry 60 --retry-delay 1 --retry-connrefused -X PUT \
    -H "Date: $now" -H "Authorization: AWS test:$signature" "$AWS_ENDPOINT/disks"
printf '%s at %s\n' "$(ceph_program radosgw --version)" "$AWS_ENDPOINT"
"$@"
