//! The disks that are served, and changes to them meanwhile.

use crate::support::{Serving, failed, image, nbd, run_nbd, succeeded};
use interop::{MIB, Peer, pattern, require, run};
use nbd_blocking::Errno;
use rustix::process::Signal;
use std::{fs, io::Read, path::Path, process::Stdio};

const SIZE: u64 = MIB;

/// Writes a byte all over the first 64 KiB of an export.
fn write(uri: &str, byte: u8) -> bool {
    let Some(qemu_io) = require(Peer::QemuIo) else {
        panic!("without qemu-io nothing can be written");
    };
    let command = format!("write -P {byte} 0 64k");
    let said = qemu_io.run(["-f", "raw", "-c", &command, "-c", "flush", uri]);
    said.status.success() && said.stdout.contains("wrote 65536/65536")
}

/// The first 64 KiB, and whether the rest is as it was made.
fn beginning(contents: &[u8], seed: u64) -> (u8, bool) {
    let (first, rest) = contents.split_at(64 << 10);
    assert!(first.iter().all(|byte| *byte == first[0]), "mixed data");
    (first[0], rest == &pattern(seed, SIZE)[64 << 10..])
}

#[test]
fn read_only_disks_cannot_be_written_and_their_files_need_no_permission() {
    run(|| {
        let disk = |dir: &Path| {
            image(dir, "disk.img", 1, SIZE);
            let path = dir.join("disk.img");
            let mut permissions = fs::metadata(&path).unwrap().permissions();
            permissions.set_readonly(true);
            fs::set_permissions(path, permissions).unwrap();
        };
        let serving = Serving::with(disk, "-r disk.img --memory 1M").ready();
        for export in ["disk.img", ""] {
            let said = succeeded(&run_nbd([
                "info",
                "--is",
                "read-only",
                &serving.uri(export),
            ]));
            assert_eq!(said, "");
        }
        assert!(!write(&serving.uri("disk.img"), 1));
        assert!(serving.contents("disk.img") == pattern(1, SIZE));
    });
}

#[test]
fn overlays_leave_disks_as_they_are() {
    run(|| {
        for overlay in ["--overlay", "--overlay=."] {
            let args = format!("{overlay} disk.img --directory images");
            let prepare = |dir: &Path| {
                image(dir, "disk.img", 1, SIZE);
                fs::create_dir(dir.join("images")).unwrap();
                image(dir, "images/other.img", 2, SIZE);
            };
            let serving = Serving::with(prepare, &args).ready();
            let copy = serving.path("copy");
            for (export, seed) in [("disk.img", 1), ("other.img", 2)] {
                let uri = serving.uri(export);
                assert!(write(&uri, 7));
                if let Some(nbdcopy) = require(Peer::NbdCopy) {
                    nbdcopy
                        .run([&*uri, copy.to_str().unwrap()])
                        .expect_success();
                    assert_eq!(beginning(&fs::read(&copy).unwrap(), seed), (7, true));
                }
            }
            serving.signal(Signal::USR1);
            assert!(serving.contents("disk.img") == pattern(1, SIZE));
            assert!(serving.contents("images/other.img") == pattern(2, SIZE));
            let names = fs::read_dir(serving.path(".")).unwrap();
            assert_eq!(
                names.count(),
                3 + usize::from(copy.exists()),
                "no file is left behind"
            );
            serving.stop();
        }
    });
}

#[test]
fn no_more_of_a_disk_is_changed_than_allowed() {
    run(|| {
        let serving = Serving::new("--overlay --overlay-limit 128K --memory 1M").ready();
        let client = nbd_blocking::connect(&serving.uri("")).unwrap();
        for block in [0, 5, 0] {
            client.write_at(&[1; 512], block << 16).unwrap();
        }
        let error = client.write_at(&[1; 512], 9 << 16).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NoSpc), "{error}");
    });
}

#[test]
fn changes_are_committed_by_a_signal_and_in_the_end() {
    run(|| {
        let prepare = |dir: &Path| image(dir, "disk.img", 1, SIZE);
        let mut serving = Serving::with(prepare, "--overlay --commit disk.img").ready();
        assert!(write(&serving.uri(""), 7));
        assert!(serving.contents("disk.img") == pattern(1, SIZE));
        serving.signal(Signal::USR1);
        let said = serving.said();
        assert!(
            said.ends_with("INFO committed 64K to \"disk.img\""),
            "{said}"
        );
        assert_eq!(beginning(&serving.contents("disk.img"), 1), (7, true));
        assert!(write(&serving.uri(""), 8));
        assert_eq!(beginning(&serving.contents("disk.img"), 1), (7, true));
        // The file outlives its directory.
        let mut file = fs::File::open(serving.path("disk.img")).unwrap();
        let said = serving.stop();
        assert!(
            said.ends_with("INFO committed 64K to \"disk.img\"\n"),
            "{said}"
        );
        let mut contents = Vec::new();
        file.read_to_end(&mut contents).unwrap();
        assert_eq!(beginning(&contents, 1), (8, true));
    });
}

#[test]
fn changes_that_no_signal_commits_are_gone_in_the_end() {
    run(|| {
        let prepare = |dir: &Path| {
            fs::create_dir(dir.join("images")).unwrap();
            image(dir, "images/disk.img", 1, SIZE);
        };
        let args = "--overlay=. --commit=signal --directory images";
        let mut serving = Serving::with(prepare, args).ready();
        let uri = serving.uri("disk.img");
        assert!(write(&uri, 7));
        serving.signal(Signal::USR1);
        let said = serving.said();
        assert!(
            said.ends_with("INFO committed 64K to \"disk.img\""),
            "{said}"
        );
        assert!(write(&uri, 8));
        let mut file = fs::File::open(serving.path("images/disk.img")).unwrap();
        assert_eq!(serving.stop(), "");
        let mut contents = Vec::new();
        file.read_to_end(&mut contents).unwrap();
        assert_eq!(beginning(&contents, 1), (7, true));
    });
}

#[test]
fn thousands_of_files_of_a_directory_are_listed() {
    run(|| {
        const FILES: usize = 5_000;
        let serving = Serving::with(
            |dir| {
                fs::create_dir(dir.join("images")).unwrap();
                for number in 0..FILES {
                    let file = fs::File::create(dir.join(format!("images/{number:04}"))).unwrap();
                    file.set_len(4096).unwrap();
                }
            },
            "--directory images --description image",
        );
        let serving = serving.ready();
        let uri = serving.uri("");
        let said = succeeded(&run_nbd(["list", &uri]));
        assert_eq!(said.lines().count(), FILES);
        assert!(said.contains("\"0042\": 4K, image"), "{}", &said[..200]);
        if let Some(nbdinfo) = require(Peer::NbdInfo) {
            let said = nbdinfo.run(["--list", "--json", &uri]).expect_success();
            assert_eq!(said.matches("\"export-name\"").count(), FILES);
        }
        if let Some(qemu_nbd) = require(Peer::QemuNbd) {
            let socket = serving.path("socket");
            let said = qemu_nbd
                .run(["-L", "-k", socket.to_str().unwrap()])
                .expect_success();
            assert!(said.contains(&format!("exports available: {FILES}")));
            assert!(said.contains("export: '4999'"));
        }
        // A file that comes later is there, too.
        fs::write(serving.path("images/late"), [0; 512]).unwrap();
        assert_eq!(
            succeeded(&run_nbd(["info", "--size", &serving.uri("late")])),
            "512\n"
        );
    });
}

#[test]
fn a_disk_that_cannot_be_served_is_named_with_a_remedy() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let missing = missing.to_str().unwrap();
        for (args, expected) in [
            (&["serve"][..], "give a PATH"),
            (&["serve", missing], "missing for writing\n  "),
            (&["serve", "x="], "is a variable unset?"),
            (
                &["serve", "--memory", "1M", "--create", "1T"],
                "--create is for disks on object storage",
            ),
            (
                &["serve", "--memory", "1M", "--max-connections", "0"],
                "0 is not in 1..",
            ),
            (
                &["serve", "--directory", missing],
                "cannot serve the directory",
            ),
            (
                &["serve", "--memory", "1M", "--memory", "2M"],
                "give NAME=PATH",
            ),
            (
                &["serve", "--memory", "1M", "--tls-only", "x"],
                "no disk of this name",
            ),
            (
                &[
                    "serve",
                    "--memory",
                    "1M",
                    "--description=a",
                    "--description=b",
                ],
                "2 descriptions",
            ),
            (&["serve", "--memory", "1M", "--", missing], "cannot start"),
        ] {
            let output = nbd()
                .args(args)
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .output();
            let said = failed(&output.unwrap());
            assert!(
                said.starts_with("error: ") && said.contains(expected),
                "{said}"
            );
        }
    });
}
