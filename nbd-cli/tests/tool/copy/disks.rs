//! Copies between disks of every kind, and comparisons of them.

use super::*;
use interop::{Certificates, KIB, Listen, MIB, QemuNbd, assert_same, pattern, run};
use serde_json::json;
use std::process::Stdio;

const LEN: usize = 8 << 20;
const SIZE: u64 = LEN as u64;

/// Data, zeroes that are allocated, and holes; at places that are no multiples of a block.
fn contents() -> Vec<u8> {
    let mut contents = vec![0; LEN];
    for (at, len) in [(0, 300 * KIB), ((2 << 20) + 77, MIB), (LEN - 1000, 1000)] {
        let data = pattern(1, len);
        contents[at..][..data.len()].copy_from_slice(&data);
    }
    contents
}

fn image() -> Image {
    raw(SIZE, &[(0, &contents())])
}

#[test]
fn a_sparse_image_of_qemu_becomes_a_file_that_is_as_sparse() {
    run(|| {
        let Some(image) = Image::qcow2(2 << 30) else {
            return;
        };
        let mut image = image.io("write -P 1 0 3M").io("write -P 2 1G 1M");
        // Zeroes that are allocated are found by looking.
        image = image.io("write -P 0 512M 1M").io("write -P 3 2047M 1M");
        let Some(server) = QemuNbd::new(image.clone()).read_only().start() else {
            return;
        };
        let directory = directory();
        let (ours, theirs) = (target(&directory), directory.path().join("theirs"));
        let uri = server.uri("");
        copy(&["--threads=2", &uri, text(&ours)]).expect(0);
        assert_identical("qcow2", text(&image.path()), text(&ours));
        let Some(nbdcopy) = require(Peer::NbdCopy) else {
            return;
        };
        nbdcopy.run([&uri, text(&theirs)]).expect_success();
        assert!(allocated(&ours) <= allocated(&theirs));
        assert!(allocated(&ours) >= 5 * MIB);
    });
}

#[test]
fn a_file_is_copied_into_nbdkit_and_back_and_verified() {
    run(|| {
        let (image, directory) = (image(), directory());
        let Some(server) = memory(SIZE) else {
            return;
        };
        let uri = server.uri("");
        copy(&["--verify", "--threads=2", text(&image.path()), &uri]).expect(0);
        assert_identical("raw", &uri, text(&image.path()));
        copy(&[&uri, text(&target(&directory))]).expect(0);
        assert_same(&fs::read(target(&directory)).unwrap(), &contents(), 0);
    });
}

#[test]
fn disks_are_copied_over_tls_in_both_directions() {
    run(|| {
        let (image, directory, certificates) = (image(), directory(), Certificates::new());
        let server = Nbdkit::new("memory").param(SIZE.to_string());
        let server = server.tls_required(&certificates).listen(Listen::Tcp4);
        let Some(server) = server.start() else {
            return;
        };
        let uri = server.tls_uri("", &certificates);
        copy(&["--verify", text(&image.path()), &uri]).expect(0);
        copy(&["--verify", &uri, text(&target(&directory))]).expect(0);
        assert_same(&fs::read(target(&directory)).unwrap(), &contents(), 0);
        assert_eq!(
            nbd(["compare", &uri, text(&image.path())]).expect(0),
            "identical\n"
        );
        // In the clear there is nothing.
        let ended = copy(&[&server.uri(""), text(&target(&directory))]);
        assert!(error(&ended).contains("TLS"), "{ended:#?}");
        ended.expect(2);
    });
}

#[test]
fn a_server_without_any_optional_feature_can_be_a_destination() {
    run(|| {
        let image = image();
        let Some(server) = Nbdkit::new("memory")
            .param(SIZE.to_string())
            .filter("nozero")
            .filter("noextents")
            .filter("blocksize-policy")
            .param("blocksize-minimum=4096")
            .param("blocksize-error-policy=error")
            .no_structured_replies()
            .start()
        else {
            return;
        };
        // There is something to be replaced by zeroes.
        let full = raw(SIZE, &[(0, &pattern(5, SIZE))]);
        for disk in [&full, &image] {
            copy(&["--verify", text(&disk.path()), &server.uri("")]).expect(0);
        }
        assert_identical("raw", &server.uri(""), text(&image.path()));
    });
}

#[test]
fn zeroes_replace_data_of_the_destination() {
    run(|| {
        let (image, full) = (image(), raw(SIZE, &[(0, &pattern(5, SIZE))]));
        let Some(server) = memory(SIZE) else {
            return;
        };
        copy(&[text(&full.path()), &server.uri("")]).expect(0);
        copy(&[text(&image.path()), &server.uri("")]).expect(0);
        assert_identical("raw", &server.uri(""), text(&image.path()));
        // A file is emptied first.
        copy(&[text(&image.path()), text(&full.path())]).expect(0);
        assert_same(&fs::read(full.path()).unwrap(), &contents(), 0);
        assert!(allocated(&full.path()) < 2 * MIB);
    });
}

#[test]
fn zeroes_are_looked_for_unless_space_is_to_be_allocated() {
    run(|| {
        let (zeroes, directory) = (raw(SIZE, &[(0, &vec![0; LEN])]), directory());
        let target = target(&directory);
        for (option, least, most) in [
            ("--sparse=4K", 0, 0),
            ("--sparse=0", SIZE, 2 * SIZE),
            ("--allocate", SIZE, 2 * SIZE),
        ] {
            copy(&[option, text(&zeroes.path()), text(&target)]).expect(0);
            let space = allocated(&target);
            assert!((least..=most).contains(&space), "{option}: {space}");
            assert_same(&fs::read(&target).unwrap(), &vec![0; LEN], 0);
        }
    });
}

#[test]
fn disks_whose_extents_are_longer_than_a_request_are_copied() {
    run(|| {
        let (Some(source), Some(destination)) = (memory(5 << 30), memory(5 << 30)) else {
            return;
        };
        copy(&[&source.uri(""), &destination.uri("")]).expect(0);
        nbd(["map", &source.uri("")]).expect(0);
    });
}

#[test]
fn a_server_is_not_asked_again_what_it_has_said() {
    run(|| {
        let (image, directory) = (raw(SIZE, &[(0, &pattern(5, SIZE))]), directory());
        let log = directory.path().join("log");
        let server = Nbdkit::new("file")
            .param(image.path())
            .filter("log")
            .param(format!("logfile={}", log.display()));
        let Some(server) = server.start() else {
            return;
        };
        let target = target(&directory);
        copy(&["--connections=1", &server.uri(""), text(&target)]).expect(0);
        let log = fs::read_to_string(log).unwrap();
        assert_eq!(log.matches(" Extents ").count(), 1, "{log}");
    });
}

#[test]
fn streams_are_copied_in_both_directions() {
    run(|| {
        let (image, directory) = (image(), directory());
        let Some(server) = memory(SIZE) else {
            return;
        };
        let uri = server.uri("");
        for destination in [&uri, text(&target(&directory))] {
            let input = fs::File::open(image.path()).unwrap();
            let mut command = command(["copy", "--verify", "-", destination]);
            let status = command.stdin(input).status();
            assert!(status.unwrap().success());
            let output = crate::support::command(["copy", destination, "-"]).output();
            let output = output.unwrap();
            assert!(output.status.success());
            assert_same(&output.stdout, &contents(), 0);
        }
        assert!(allocated(&target(&directory)) < 2 * MIB);
    });
}

#[test]
fn a_stream_that_is_too_long_is_an_error() {
    run(|| {
        let image = image();
        let Some(server) = memory(SIZE - 512) else {
            return;
        };
        let input = fs::File::open(image.path()).unwrap();
        let mut command = command(["copy", "-", &server.uri("")]);
        let output = command.stdin(input).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("is too small"), "{said}");
    });
}

#[test]
fn a_closed_pipe_is_quiet() {
    run(|| {
        let image = raw(SIZE, &[(0, &pattern(5, SIZE))]);
        let mut child = command(["copy", text(&image.path()), "-"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut some = [0; 10];
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_exact(&mut some).unwrap();
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(output.stderr, b"");
    });
}

#[test]
fn the_hash_is_that_of_all_bytes() {
    run(|| {
        let (image, directory) = (Image::raw(MIB), directory());
        let path = image.path();
        let said = copy(&["--hash", text(&path), text(&target(&directory))]).expect(0);
        let zeroes = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58";
        assert_eq!(said, format!("{zeroes}  {}\n", text(&path)));
        // The same bytes, looked at and not known to be zero.
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        let said = copy(&[
            "--hash",
            "--sparse=0",
            text(&path),
            text(&target(&directory)),
        ]);
        assert_eq!(said.expect(0), format!("{zeroes}  {}\n", text(&path)));
    });
}

#[test]
fn only_changed_blocks_are_written() {
    run(|| {
        let (image, directory) = (image(), directory());
        let log = directory.path().join("log");
        let disk = raw(SIZE, &[(0, &contents())]);
        let server = Nbdkit::new("file")
            .param(disk.path())
            .filter("log")
            .param(format!("logfile={}", log.display()));
        let Some(server) = server.start() else {
            return;
        };
        let changed = fs::File::options().write(true).open(image.path()).unwrap();
        changed.write_all_at(&[7; 100], 3 * MIB).unwrap();
        changed.write_all_at(&[0; 4096], 4096).unwrap();
        let uri = server.uri("");
        copy(&["--changed-only", text(&image.path()), &uri]).expect(0);
        let log = fs::read_to_string(log).unwrap();
        let is_change = |line: &&str| line.contains("...") && !line.contains("...Read");
        let changes: Vec<_> = log.lines().filter(is_change).collect();
        let count = |what: &str| changes.iter().filter(|line| line.contains(what)).count();
        assert_eq!((count(" Write "), count(" Zero ")), (1, 1), "{log}");
        drop(server);
        assert_same(
            &fs::read(disk.path()).unwrap(),
            &fs::read(image.path()).unwrap(),
            0,
        );
    });
}

#[test]
fn a_destination_that_is_too_small_is_refused_with_both_sizes() {
    run(|| {
        let image = image();
        let Some(server) = memory(SIZE - MIB) else {
            return;
        };
        let ended = copy(&[text(&image.path()), &server.uri("")]);
        let error = error(&ended);
        assert!(error.contains("is too small"), "{error}");
        assert!(
            error.contains("7340032 (7M)") && error.contains("8388608 (8M)"),
            "{error}"
        );
        ended.expect(2);
    });
}

#[test]
fn a_file_is_not_copied_to_itself() {
    let (image, directory) = (image(), directory());
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(image.path(), &link).unwrap();
    let ended = copy(&[text(&image.path()), text(&link)]);
    assert!(error(&ended).contains("are the same file"));
    ended.expect(2);
    assert_same(&fs::read(image.path()).unwrap(), &contents(), 0);
}

#[test]
fn progress_is_a_bar_on_a_terminal() {
    let (image, directory) = (image(), directory());
    let (path, target) = (image.path(), target(&directory));
    let on_terminal = |more: &str| {
        let copy = format!("nbd copy {more} {} {}", text(&path), text(&target));
        // It makes a terminal.
        let ended = std::process::Command::new("script")
            .args(["-qec", &copy, "/dev/null"])
            .env("PATH", crate::support::search_path())
            .stdin(Stdio::null())
            .output();
        let ended = ended.expect("there is script");
        assert!(ended.status.success());
        String::from_utf8(ended.stdout).unwrap()
    };
    let bar = on_terminal("");
    for part in ["copy [=", "] 100% 8.00 MiB/8.00 MiB", "iB/s, 0s left"] {
        assert!(bar.contains(part), "{part}: {bar:?}");
    }
    assert_eq!(on_terminal("-q"), "");
    let json = on_terminal("--progress=json");
    assert!(json.contains("\"event\":\"done\""), "{json}");
}

#[test]
fn progress_is_reported_as_json() {
    let (image, directory) = (image(), directory());
    let path = image.path();
    let ended = copy(&["--progress=json", text(&path), text(&target(&directory))]);
    let first = ended.stderr.lines().next().unwrap().to_owned();
    let last = ended.stderr.lines().last().unwrap().to_owned();
    ended.expect(0);
    let first: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!(
        (&first["schema"], &first["phase"]),
        (&json!(1), &json!("copy"))
    );
    let last: serde_json::Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["event"], "done");
    assert!(last["bytes_per_second"].as_u64() > Some(0), "{last}");
    assert_eq!(last["seconds_left"], 0);
    assert_eq!(
        (&last["bytes"], &last["size"]),
        (&json!(SIZE), &json!(SIZE))
    );
}

#[test]
fn disks_are_compared_byte_by_byte() {
    run(|| {
        let (image, other) = (image(), raw(SIZE, &[(0, &contents())]));
        let Some(server) = Nbdkit::file(other.clone()).start() else {
            return;
        };
        let (path, uri) = (image.path(), server.uri(""));
        let compare = |more: &[&str]| nbd(["compare", text(&path), &uri].iter().chain(more));
        assert_eq!(compare(&[]).expect(0), "identical\n");
        assert_eq!(compare(&["--strict", "-q"]).expect(0), "");

        let file = fs::File::options().write(true).open(&path).unwrap();
        // In a hole of the other, and in data of both.
        file.write_all_at(&[1], 5 * MIB + 3).unwrap();
        file.write_all_at(&[0; 9], 1234).unwrap();
        let lost = contents()[1234..][..9].to_vec();
        let different = lost.iter().filter(|byte| **byte != 0).count() as u64 + 1;
        for threads in ["--threads=1", "--threads=2"] {
            let said = compare(&[threads]).expect(1);
            assert_eq!(
                said,
                format!("different: {different} bytes, the first at 1234\n")
            );
        }
        let said = compare(&["--first"]).expect(1);
        assert_eq!(said, "different: the first byte at 1234\n");
        let said: serde_json::Value =
            serde_json::from_str(&compare(&["--json"]).expect(1)).unwrap();
        assert_eq!(said["identical"], false);
        assert_eq!(said["first-difference"], 1234);
        assert_eq!(said["different-bytes"], different);
    });
}

#[test]
fn the_rest_of_a_longer_disk_has_to_be_zero() {
    let (image, longer) = (image(), raw(SIZE + MIB, &[(0, &contents())]));
    let compare = |more: &[&str]| {
        let (path, longer) = (image.path(), longer.path());
        nbd(["compare", text(&path), text(&longer)].iter().chain(more))
    };
    compare(&[]).expect(0);
    let said = compare(&["--strict"]).expect(1);
    assert!(said.contains("of 8388608 and of 9437184 bytes"), "{said}");
    let file = fs::File::options().write(true).open(longer.path()).unwrap();
    file.write_all_at(&[1], SIZE + 5).unwrap();
    let said = compare(&[]).expect(1);
    assert_eq!(
        said,
        format!("different: 1 bytes, the first at {}\n", SIZE + 5)
    );
}

#[test]
fn disks_that_cannot_be_compared_are_an_error() {
    let image = image();
    nbd(["compare", text(&image.path()), "/nonexistent"]).expect(2);
}
