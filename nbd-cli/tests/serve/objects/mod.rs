//! Disks on object storage, in a directory.

mod counted;
mod killed;
#[cfg(feature = "cloud")]
mod stores;

use crate::support::{Serving, failed, run_nbd, succeeded};
use interop::{MIB, Peer, pattern, require, run};
use nbd_blocking::{Client, CommandFlags, Errno};
use std::{fs, time::Instant};
use tempfile::TempDir;

/// A place for disks, and the URI of one there.
fn place() -> (TempDir, String) {
    let dir = tempfile::Builder::new().prefix("nbd-").tempdir().unwrap();
    let uri = format!("file://{}/disk", dir.path().display());
    (dir, uri)
}

/// A server of the disk.
fn serve(uri: &str, args: &str) -> Serving {
    Serving::new(&format!("{uri} {args}")).ready()
}

fn connect(serving: &Serving, export: &str) -> Client {
    nbd_blocking::connect(&serving.uri(export)).unwrap()
}

fn read(client: &Client, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    client.read_exact_at(&mut data, offset).unwrap();
    data
}

#[test]
fn a_disk_is_made_used_by_other_programs_and_found_again() {
    run(|| {
        let (dir, uri) = place();
        let image = dir.path().join("image");
        fs::write(&image, pattern(1, 5 * MIB)).unwrap();
        let copied = dir.path().join("copied");
        let script = "nbdinfo \"$NBD_URI\" | grep -q 'export-size: 1099511627776 (1T)' && \
                      nbdcopy \"$IMAGE\" \"$NBD_URI\"";
        if require(Peer::NbdInfo).is_none() || require(Peer::NbdCopy).is_none() {
            return;
        }
        let mut command = crate::support::nbd();
        command.args(["serve", &uri, "--create", "1T", "--", "sh", "-c", script]);
        succeeded(&command.env("IMAGE", &image).output().unwrap());
        let again = serve(&uri, "--create 1T");
        let client = connect(&again, "disk");
        assert!(read(&client, 0, 5 << 20) == pattern(1, 5 * MIB));
        // Of a terabyte, only the data is copied and takes space.
        let start = Instant::now();
        let nbdcopy = require(Peer::NbdCopy).unwrap();
        nbdcopy
            .run([&*again.uri("disk"), copied.to_str().unwrap()])
            .expect_success();
        assert_eq!(fs::metadata(&copied).unwrap().len(), 1 << 40);
        assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
        again.stop();
        let checked = succeeded(&run_nbd(["object", "check", &uri]));
        assert!(checked.ends_with("all are whole\n"), "{checked}");
    });
}

#[test]
fn a_second_server_fences_the_first() {
    run(|| {
        let (_dir, uri) = place();
        let first = serve(&uri, "--create 64M");
        let old = connect(&first, "disk");
        old.write_all_at(&pattern(1, MIB), 0).unwrap();
        old.flush().unwrap();

        let second = serve(&uri, "");
        let new = connect(&second, "");
        assert!(read(&new, 0, 1 << 20) == pattern(1, MIB));
        // The first one's writes are taken into memory, and go nowhere.
        let _ = old.write_all_at(&pattern(2, MIB), 0);
        assert_eq!(old.flush().unwrap_err().errno(), Some(Errno::Io));
        new.write_all_at(&pattern(3, MIB), MIB).unwrap();
        new.flush().unwrap();
        assert_eq!(old.flush().unwrap_err().errno(), Some(Errno::Io));
        assert!(old.write_all_at(&[1; 512], 0).is_err());

        first.signal(rustix::process::Signal::TERM);
        let (status, said) = first.wait();
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("opened by another writer"), "{said}");
        second.stop();
        let third = serve(&uri, "-r");
        let client = connect(&third, "disk");
        assert!(read(&client, 0, 1 << 20) == pattern(1, MIB));
        assert!(read(&client, MIB, 1 << 20) == pattern(3, MIB));
    });
}

#[test]
fn snapshots_are_exports_that_stay_as_they_are() {
    run(|| {
        let (_dir, uri) = place();
        let serving = serve(&uri, "--create 64M");
        let client = connect(&serving, "disk");
        client.write_all_at(&pattern(1, MIB), 0).unwrap();
        client.flush().unwrap();
        succeeded(&run_nbd(["object", "snapshot", &format!("{uri}@one")]));
        client.write_all_at(&pattern(2, MIB), 0).unwrap();
        client.flush().unwrap();
        let snapshot = connect(&serving, "disk@one");
        assert!(read(&snapshot, 0, 1 << 20) == pattern(1, MIB));
        assert!(read(&client, 0, 1 << 20) == pattern(2, MIB));
        assert!(snapshot.export().is_read_only());
        let listed = succeeded(&run_nbd(["list", "--names", &serving.uri("")]));
        assert_eq!(listed, "disk\ndisk@one\n");
        assert!(nbd_blocking::connect(&serving.uri("disk@two")).is_err());
        serving.stop();
        // A snapshot can be served alone.
        let serving = serve(&format!("{uri}@one"), "");
        assert!(read(&connect(&serving, ""), 0, 1 << 20) == pattern(1, MIB));
    });
}

#[test]
fn trims_and_zeroes_of_terabytes_take_no_time() {
    run(|| {
        let (_dir, uri) = place();
        let serving = serve(&uri, "--create 2T");
        let client = connect(&serving, "disk");
        let start = Instant::now();
        for at in 0..64_u64 {
            client.write_all_at(&[7; 4096], at << 35).unwrap();
        }
        client.flush().unwrap();
        client.trim(0, 1 << 40, CommandFlags::NONE).unwrap();
        client
            .write_zeroes(1 << 40, 1 << 40, CommandFlags::FUA)
            .unwrap();
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
        for at in [0, 31, 32, 63] {
            assert_eq!(read(&client, at << 35, 4096), [0; 4096]);
        }
    });
}

#[test]
fn a_disk_is_served_on_standard_input() {
    run(|| {
        let (_dir, uri) = place();
        succeeded(&run_nbd(["object", "create", &uri, "64M"]));
        let nbd = env!("CARGO_BIN_EXE_nbd");
        let mut child = std::process::Command::new(nbd);
        child.args(["serve", "--stdio", &uri]);
        let options = nbd_blocking::ConnectOptions::new();
        let client = options.connect_command(child).unwrap();
        client.write_all_at(&pattern(1, MIB), 0).unwrap();
        client.flush().unwrap();
        client.disconnect().unwrap();
    });
}

#[test]
fn overlays_are_refused_with_a_remedy() {
    run(|| {
        let (_dir, uri) = place();
        let refused = run_nbd(["serve", "--overlay", "--create", "1M", &uri]);
        let said = failed(&refused);
        assert!(said.contains("`nbd object snapshot URI@NAME`"), "{said}");
    });
}
