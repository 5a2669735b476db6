#!/usr/bin/env bash
# Makes a small Linux system with the kernel's NBD client and with vsock below a directory, and a
# program that boots it: `DIRECTORY/linux-with-nbd KERNEL-ARGUMENTS...`, with the machine's console
# on standard output. It can read this machine's files, and run them by `nbd_run="PROGRAM ARGUMENTS"`.
#
# Does nothing if all is there and was made by this script as it is.
#
# Everything comes from Debian's packages, which are unpacked and not installed, so that nothing
# else on this machine changes and no root is needed. Only for x86-64.

set -euo pipefail
directory=$(realpath -m "$1")
cd "$(dirname "${BASH_SOURCE[0]}")"

PACKAGES=(qemu-system-x86 linux-image-amd64 busybox-static nbd-client e2fsprogs util-linux)
# Those that a kernel has built in are not there.
MODULES=(failover net_failover e1000 crc32c_generic libcrc32c crc16 mbcache jbd2 ext4 nbd
    virtio virtio_ring virtio_pci virtio_pci_legacy_dev virtio_pci_modern_dev
    9p 9pnet 9pnet_virtio fscache netfs overlay
    vsock vmw_vsock_virtio_transport_common vsock_loopback)
PROGRAMS=(sbin/nbd-client sbin/mke2fs sbin/e2fsck sbin/blkdiscard sbin/fstrim)

unpacked=$directory/unpacked
root=$directory/root
loader=$unpacked/lib64/ld-linux-x86-64.so.2
libraries=$unpacked/usr/lib/x86_64-linux-gnu:$unpacked/lib/x86_64-linux-gnu

# Downloads all packages that those need, whatever is installed here, and unpacks them.
unpack() {
    local archives=$directory/archives
    mkdir -p "$archives/partial"
    : >"$directory/status"
    apt-get install --download-only -y -qq --no-install-recommends \
        -o Dir::State::status="$directory/status" \
        -o Dir::Cache::archives="$archives" \
        -o Debug::NoLocking=true "${PACKAGES[@]}"
    local package
    for package in "$archives"/*.deb; do
        dpkg-deb --extract "$package" "$unpacked"
    done
    rm -r "$archives"
}

# Copies a program and the shared libraries that it needs.
copy() {
    local library
    cp -L "$1" "$root/bin/"
    "$loader" --library-path "$libraries" --list "$1" | sed -n 's/.* => \([^ ]*\) .*/\1/p' |
        while read -r library; do
            cp -L "$library" "$root/lib/"
        done
}

initramfs() {
    local name file
    mkdir -p "$root"/{bin,lib,modules,proc,sys,dev,mnt}
    ln -sfn lib "$root/lib64"
    cp "$unpacked/bin/busybox" "$root/bin/"
    cp -L "$loader" "$root/lib/"
    for file in "${PROGRAMS[@]}"; do
        copy "$unpacked/$file"
    done
    for name in "${MODULES[@]}"; do
        file=$(find "$unpacked" -name "$name.ko*" -print -quit)
        case $file in
        *.xz) xz -dc "$file" >"$root/modules/$name.ko" ;;
        *.ko) cp "$file" "$root/modules/" ;;
        esac
    done
    cp init "$root/init"
    chmod +x "$root/init"
    (cd "$root" && find . | "$unpacked/bin/busybox" cpio -o -H newc 2>/dev/null) |
        gzip -1 >"$directory/initramfs"
    # Nearly all that was unpacked.
    rm -r "$unpacked"/lib/modules/*/* "$unpacked"/usr/share/{doc,locale,man} "$root"
}

# The kernel without its compression, which takes the emulated processor some seconds to undo. One that is
# not compressed by `xz`, as Debian's is, is left as it is.
kernel() {
    local file start
    file=$(echo "$unpacked"/boot/vmlinuz-*)
    start=$(LC_ALL=C grep -aboP '\xfd7zXZ\x00' "$file" | head -n 1 | cut -d : -f 1) || true
    xz -dc --single-stream < <(tail -c "+$((${start:-0} + 1))" "$file") >"$directory/kernel" ||
        mv "$file" "$directory/kernel"
}

# The emulator finds its libraries and its firmware where they were unpacked. Its processor is the
# one that can do most: one without random numbers makes programs wait for some, one without AES
# takes long for TLS. Mitigations would protect nothing here, and take a tenth to a fifth of the time; the
# kernel's tests of its own cryptography take a second.
program() {
    cat >"$directory/linux-with-nbd" <<'END'
#!/usr/bin/env bash
cd "$(dirname "${BASH_SOURCE[0]}")/unpacked"
if [[ ${1:-} == --version ]]; then
    printf 'Linux %s\n' "$(ls lib/modules)"
    exit
fi
libraries=$PWD/usr/lib/x86_64-linux-gnu:$PWD/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR=$PWD/usr/lib/x86_64-linux-gnu/qemu
exec "$PWD/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" usr/bin/qemu-system-x86_64 \
    -L usr/share/qemu -L usr/share/seabios -L usr/lib/ipxe/qemu \
    -machine pc -cpu max -m 512 -smp 2 -nographic -no-reboot \
    -netdev user,id=net -device e1000,netdev=net,romfile= \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
    -kernel ../kernel -initrd ../initramfs \
    -append "console=ttyS0 cryptomgr.notests quiet panic=-1 mitigations=off $*"
END
    chmod +x "$directory/linux-with-nbd"
}

made_by=$(cat prepare.sh init | sha256sum)
if [[ -e $directory/linux-with-nbd && $(cat "$directory/made-by" 2>&1) == "$made_by" ]]; then
    exit
fi
rm -rf "$directory"
unpack
kernel
initramfs
printf '%s\n' "$made_by" >"$directory/made-by"
# The last: whenever it is there, all else is, too.
program
