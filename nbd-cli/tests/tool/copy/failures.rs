//! Copies that cannot be carried out, which never end in success.

use super::*;
use interop::{MIB, pattern, run};

const SIZE: u64 = 8 * MIB;

fn image() -> Image {
    raw(SIZE, &[(0, &pattern(1, SIZE))])
}

/// The errors that nbdkit's filter makes.
const ERRORS: [&str; 6] = ["EPERM", "EIO", "ENOMEM", "EINVAL", "ENOSPC", "ESHUTDOWN"];

/// A server that fails all calls of a kind with an error.
fn failing(server: Nbdkit, call: &str, error: &str) -> Nbdkit {
    let filtered = server.filter("error");
    filtered
        .param(format!("error-{call}={error}"))
        .param(format!("error-{call}-rate=100%"))
}

#[test]
fn a_read_that_fails_is_an_error_whichever_it_is() {
    run(|| {
        for errno in ERRORS {
            let directory = directory();
            let Some(server) = failing(Nbdkit::file(image()), "pread", errno).start() else {
                return;
            };
            let ended = copy(&[&server.uri(""), text(&target(&directory))]);
            let error = error(&ended);
            assert!(error.contains("cannot read nbd+unix:"), "{errno}: {error}");
            assert!(ended.stderr.contains("failed when"), "{errno}: {ended:#?}");
            ended.expect(2);
        }
    });
}

#[test]
fn a_write_that_fails_is_an_error_whichever_it_is() {
    run(|| {
        let image = image();
        for errno in ERRORS {
            let memory = Nbdkit::new("memory").param(SIZE.to_string());
            let Some(server) = failing(memory, "pwrite", errno).start() else {
                return;
            };
            let ended = copy(&[text(&image.path()), &server.uri("")]);
            let error = error(&ended);
            assert!(error.contains("cannot write nbd+unix:"), "{errno}: {error}");
            ended.expect(2);
        }
    });
}

#[test]
fn extents_that_cannot_be_had_are_an_error() {
    run(|| {
        let directory = directory();
        let Some(server) = failing(Nbdkit::file(image()), "extents", "EIO").start() else {
            return;
        };
        copy(&[&server.uri(""), text(&target(&directory))]).expect(2);
    });
}

#[test]
fn a_destination_that_is_full_is_an_error() {
    run(|| {
        let image = image();
        let memory = Nbdkit::new("memory").param(SIZE.to_string());
        let Some(server) = failing(memory, "pwrite", "ENOSPC").start() else {
            return;
        };
        let ended = copy(&[text(&image.path()), &server.uri("")]);
        assert!(
            error(&ended).contains("cannot write nbd+unix:"),
            "{ended:#?}"
        );
        assert!(error(&ended).ends_with(": it is full"), "{ended:#?}");
        ended.expect(2);
    });
}

/// A server that takes everything and keeps nothing.
fn forgetful() -> Nbdkit {
    Nbdkit::new("eval")
        .param(format!("get_size=echo {SIZE}"))
        .param("can_write=exit 0")
        .param("pwrite=cat >/dev/null")
        .param("pread=head -c $3 /dev/zero")
}

#[test]
fn missing_data_is_found_by_verifying() {
    run(|| {
        let image = image();
        let Some(server) = forgetful().start() else {
            return;
        };
        let uri = server.uri("");
        copy(&[text(&image.path()), &uri]).expect(0);
        let ended = copy(&["--verify", text(&image.path()), &uri]);
        assert!(
            error(&ended).contains("differs from the data copied"),
            "{ended:#?}"
        );
        ended.expect(2);

        // Nor does a later copy rely on data that was found to be wrong.
        let directory = directory();
        let state = directory.path().join("state");
        let resume = format!("--resume={}", state.display());
        let ended = copy(&["--verify", &resume, text(&image.path()), &uri]);
        assert!(!state.exists(), "{ended:#?}");
        ended.expect(2);

        let input = fs::File::open(image.path()).unwrap();
        let mut command = command(["copy", "--verify", "-", &uri]);
        let output = command.stdin(input).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("SHA-256"), "{said}");
    });
}

#[test]
fn a_flush_that_fails_is_an_error() {
    run(|| {
        let image = image();
        let flush = "flush=echo EIO the disk is broken >&2; exit 1";
        let Some(server) = forgetful().param("can_flush=exit 0").param(flush).start() else {
            return;
        };
        let ended = copy(&[text(&image.path()), &server.uri("")]);
        assert!(error(&ended).contains("cannot flush"), "{ended:#?}");
        ended.expect(2);
        copy(&["--no-flush", text(&image.path()), &server.uri("")]).expect(0);
    });
}

#[test]
fn a_stream_that_is_full_is_an_error() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let image = image();
    let ended = copy(&[text(&image.path()), "/dev/full"]);
    assert!(error(&ended).contains("/dev/full"), "{ended:#?}");
    ended.expect(2);
}

#[test]
fn a_server_that_is_read_only_is_not_written_to() {
    run(|| {
        let image = image();
        let Some(server) = Nbdkit::file(image.clone()).read_only().start() else {
            return;
        };
        let other = Image::raw(SIZE);
        let ended = copy(&[text(&other.path()), &server.uri("")]);
        assert!(error(&ended).contains("is read-only"), "{ended:#?}");
        ended.expect(2);
    });
}

/// A server that takes some seconds for each request.
fn slow(image: Image) -> Option<Server> {
    Nbdkit::file(image)
        .filter("rate")
        .param("rate=32M")
        .param("burstiness=0.05")
        .start()
}

#[test]
fn a_server_that_is_killed_is_an_error() {
    run(|| {
        let directory = directory();
        let Some(server) = slow(image()) else {
            return;
        };
        let mut copy = Running::start(&[&server.uri(""), text(&target(&directory))]);
        copy.wait_for(1);
        server.kill();
        let ended = copy.end();
        assert!(
            error(&ended).contains("cannot read nbd+unix:"),
            "{ended:#?}"
        );
        ended.expect(2);
    });
}

#[test]
fn a_source_that_comes_back_is_read_on() {
    run(|| {
        let (image, directory) = (image(), directory());
        let Some(mut server) = slow(image.clone()) else {
            return;
        };
        let target = target(&directory);
        let mut copy = Running::start(&["--retries=50", &server.uri(""), text(&target)]);
        copy.wait_for(1);
        server.restart();
        copy.end().expect(0);
        interop::assert_same(&fs::read(target).unwrap(), &pattern(1, SIZE), 0);
    });
}

#[test]
fn a_destination_that_comes_back_has_everything() {
    run(|| {
        let (image, disk) = (image(), Image::raw(SIZE));
        let Some(mut server) = slow(disk.clone()) else {
            return;
        };
        let source = image.path();
        let mut copy = Running::start(&["--retries=50", text(&source), &server.uri("")]);
        copy.wait_for(1);
        server.restart();
        copy.end().expect(0);
        drop(server);
        interop::assert_same(&fs::read(disk.path()).unwrap(), &pattern(1, SIZE), 0);
    });
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    run(|| {
        let (image, directory) = (image(), directory());
        let Some(mut server) = Nbdkit::file(image).start() else {
            return;
        };
        server.kill();
        let target = target(&directory);
        let uri = server.uri("");
        copy(&[&uri, text(&target)]).expect(2);
        let mut copy = Running::start(&["-v", "--retries=100", &uri, text(&target)]);
        copy.wait_for_line("it is tried again");
        server.restart();
        copy.end().expect(0);
        interop::assert_same(&fs::read(target).unwrap(), &pattern(1, SIZE), 0);
    });
}

#[test]
fn a_comparison_goes_on_when_a_server_comes_back() {
    run(|| {
        let image = image();
        let Some(mut server) = slow(image.clone()) else {
            return;
        };
        let mut compare =
            Running::compare(&["--retries=100", &server.uri(""), text(&image.path())]);
        compare.wait_for(1);
        server.restart();
        assert_eq!(compare.end().expect(0), "identical\n");
    });
}
