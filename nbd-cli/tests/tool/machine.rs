//! Block devices, file systems that are full, and vsock: they need rights or a kernel that the
//! machine of a test need not have. The tests that are `#[ignore]`d run in the emulated machine.

use crate::support::search_path;
use interop::{Certificates, deadline, ignored_tests_in_linux, pattern, run};
use std::{env, fs, process::Command, time::Duration};

/// The variable that is set in the emulated machine alone, whose files may be changed.
const MACHINE: &str = "nbd_machine";

const SIZE: u64 = 8 << 20;

#[test]
fn devices_and_vsock_are_used_in_an_emulated_machine() {
    deadline(Duration::from_secs(640), || {
        ignored_tests_in_linux(&[(MACHINE, "1")])
    });
}

/// Runs a script in a directory that has a `disk.img` of data, and stops at the first command of it that
/// fails.
#[track_caller]
fn succeeds(script: &str) {
    assert!(
        env::var_os(MACHINE).is_some(),
        "it would change this machine"
    );
    let dir = tempfile::tempdir().expect("a directory can be made");
    fs::write(dir.path().join("disk.img"), pattern(1, SIZE)).expect("a file can be written");
    let ended = Command::new("sh")
        .args(["-exc", script])
        .current_dir(dir.path())
        .env("PATH", search_path())
        .output()
        .expect("there is a shell");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {said}", ended.status);
}

#[test]
#[ignore = "runs in the emulated machine, whose kernel has block devices"]
fn block_devices_are_copied_in_both_directions() {
    run(|| {
        succeeds(
            r#"nbd serve --listen 127.0.0.1:0 --memory 8M -- sh -exc '
                port=${NBD_URI##*:}
                nbd-client -N "" 127.0.0.1 "${port%%/*}" /dev/nbd0 -b 4096
                trap "nbd-client -d /dev/nbd0" EXIT
                [ "$(nbd info --size /dev/nbd0)" = 8388608 ]
                nbd copy --verify disk.img /dev/nbd0
                nbd compare disk.img "$NBD_URI"
                nbd copy /dev/nbd0 back.img
                cmp disk.img back.img
                nbd serve -r /dev/nbd0 -- sh -exc "nbd compare disk.img \"\$NBD_URI\""
                truncate -s 9M large.img
                code=0
                nbd copy large.img /dev/nbd0 2>said || code=$?
                [ $code = 2 ]
                grep "is too small" said
            '"#,
        );
    });
}

#[test]
#[ignore = "runs in the emulated machine, where file systems can be mounted"]
fn a_copy_that_fills_its_file_system_fails_and_is_resumed() {
    run(|| {
        succeeds(
            r#"mkdir small
            mount -t tmpfs -o size=4M small small
            trap "umount small" EXIT
            code=0
            nbd copy --resume state disk.img small/copy 2>said || code=$?
            [ $code = 2 ]
            grep "^error: cannot write small/copy at .*: it is full" said
            mount -o remount,size=16M small
            nbd copy --resume state disk.img small/copy
            cmp disk.img small/copy
            [ ! -e state ]"#,
        );
    });
}

#[test]
#[ignore = "runs in the emulated machine, which has a loopback of vsock"]
fn disks_are_served_and_used_over_vsock() {
    run(|| {
        succeeds(
            r#"nbd serve --vsock 7654 --memory 8M -- sh -exc '
                [ "${NBD_URI%/}" = nbd+vsock://1:7654 ]
                [ "$(nbd info --size "$NBD_URI")" = 8388608 ]
                nbd copy --verify disk.img "$NBD_URI"
                nbd copy "$NBD_URI" back.img
                cmp disk.img back.img
            '"#,
        );
    });
}

#[test]
#[ignore = "runs in the emulated machine, where libnbd's certificates can be put into their place"]
fn fio_uses_a_disk_over_tls() {
    run(|| {
        // Its engine takes no directory of certificates from a URI.
        let certificates = Certificates::new();
        let script = r#"mkdir -p /etc/pki/libnbd
            cp CERTIFICATES/ca-cert.pem CERTIFICATES/client-*.pem /etc/pki/libnbd
            nbd serve --listen 127.0.0.1:0 --memory 4M --tls-dir CERTIFICATES -- sh -exc '
                port=${NBD_URI##*:}
                nbd info "nbd://127.0.0.1:${port%%/*}" && exit 1
                fio --name=job --ioengine=nbd --thread --iodepth=16 --size=2M --bs=4k --rw=randwrite \
                    --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0 \
                    "--uri=nbds://127.0.0.1:${port%%/*}/"
            '"#;
        let certificates = certificates.dir().display().to_string();
        succeeds(&script.replace("CERTIFICATES", &certificates));
    });
}

/// Starts servers of a disk on object storage, each as a block device. The last one ends with the shell,
/// whose end would not be seen if the server still had its standard error.
const BEGIN: &str = r#"mkfifo said
    exec 3<>said
    trap "kill -9 \$server" EXIT
    begin() {
        nbd serve --listen 127.0.0.1:0 "file://$PWD/store/disk" --create "$2" >&3 &
        server=$!
        read -r uri <&3
        port=${uri##*:}
        nbd-client -N "" 127.0.0.1 "${port%%/*}" "$1" -b 4096
    }
    end() {
        nbd-client -d "$1"
        kill $server
        wait $server
        trap - EXIT
    }
    "#;

#[test]
#[ignore = "runs in the emulated machine, where file systems can be mounted"]
fn a_file_system_on_an_object_disk_is_whole_after_its_server_was_killed() {
    run(|| {
        let script = r#"kib() { du -sk store | cut -f 1; }
            head -c 1M disk.img >some.img
            begin /dev/nbd0 96M
            mke2fs -q -t ext4 /dev/nbd0
            mkdir files
            mount /dev/nbd0 files
            cp some.img files/kept
            cp disk.img files/deleted
            sync
            [ "$(kib)" -gt 9000 ]
            rm files/deleted
            sync
            fstrim files
            cp some.img files/synced
            sync
            while cat some.img >files/later && sync files/later; do :; done 2>writer &
            # It is being written.
            until [ -e files/later ]; do :; done
            kill -9 $server
            wait $server || true
            # Ends as soon as writes fail.
            wait $! || true
            umount files
            nbd-client -d /dev/nbd0

            begin /dev/nbd1 96M
            # This replays the journal.
            mount /dev/nbd1 files
            cmp some.img files/kept
            cmp some.img files/synced
            [ ! -e files/deleted ]
            umount files
            e2fsck -fn /dev/nbd1
            end /dev/nbd1
            nbd object gc --age 0.001 "file://$PWD/store/disk"
            nbd object check "file://$PWD/store/disk"
            [ "$(kib)" -lt 7000 ]"#;
        succeeds(&[BEGIN, script].concat());
    });
}

#[test]
#[ignore = "runs in the emulated machine, whose kernel trims"]
fn a_file_system_on_two_terabytes_of_object_storage_is_made_in_bounded_memory() {
    run(|| {
        // The data is between metadata.
        let script = r#"data() { nbd map --offset 1049600M --length 8M "$uri"; }
            begin /dev/nbd2 2T
            dd if=disk.img of=/dev/nbd2 bs=1M seek=1049600 oflag=direct conv=fsync
            data | grep data
            mke2fs -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 /dev/nbd2 2>&1 | grep Discarding
            data | grep data && exit 1
            peak=$(sed -n "s/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p" /proc/$server/status)
            [ "$peak" -gt 0 ]
            [ "$peak" -lt 150000 ]
            end /dev/nbd2"#;
        succeeds(&[BEGIN, script].concat());
    });
}
