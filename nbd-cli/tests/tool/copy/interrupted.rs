//! Copies that are stopped, and go on later.

use super::*;
use interop::{MIB, pattern, run};
use std::{thread, time::Duration};

const SIZE: u64 = 24 * MIB;

/// A source of which each MiB takes a tenth of a second.
fn limited<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["--limit-rate=10M", "--request-size=64K", "--threads=2"];
    args.extend(more);
    args
}

fn image() -> Image {
    raw(SIZE, &[(0, &pattern(1, SIZE - MIB))])
}

#[test]
fn a_copy_that_is_interrupted_says_how_far_it_came_and_is_resumed() {
    run(|| {
        let (image, directory) = (image(), directory());
        let Some(server) = memory(SIZE) else {
            return;
        };
        let (path, uri) = (image.path(), server.uri(""));
        let state = directory.path().join("state");
        let resume = format!("--resume={}", state.display());
        for signal in ["INT", "TERM"] {
            let mut copy = Running::start(&limited(&[&resume, text(&path), &uri]));
            copy.wait_for(MIB);
            copy.signal(signal);
            let ended = copy.end();
            assert_eq!(ended.code, Some(130), "{ended:#?}");
            assert!(ended.stderr.contains("stopped when "), "{ended:#?}");
            assert!(state.exists());
        }
        // Copied ranges are not read again.
        let mut copy = Running::start(&limited(&[&resume, text(&path), &uri]));
        copy.wait_for(2 * MIB);
        let first = copy.said.lines().next().unwrap();
        let first: serde_json::Value = serde_json::from_str(first).unwrap();
        assert!(first["bytes"].as_u64() >= Some(2 * MIB), "{first}");
        copy.end().expect(0);
        assert!(!state.exists());
        assert_identical("raw", &uri, text(&path));
    });
}

#[test]
fn a_copy_that_is_killed_is_resumed() {
    run(|| {
        let (image, directory) = (image(), directory());
        let (path, target) = (image.path(), target(&directory));
        let state = directory.path().join("state");
        let resume = format!("--resume={}", state.display());
        let args = [&*resume, "--limit-rate=4M", text(&path), text(&target)];
        let mut killed = Running::start(&args);
        while !state.exists() {
            thread::sleep(Duration::from_millis(5));
        }
        killed.child.kill().unwrap();
        assert_eq!(killed.end().code, None);
        // Ranges that are not in the record may hold anything.
        let written = fs::metadata(&target).unwrap().len();
        assert_eq!(written, SIZE);
        copy(&[&resume, text(&path), text(&target)]).expect(0);
        nbd(["compare", text(&path), text(&target)]).expect(0);
        assert!(!state.exists());
    });
}

#[test]
fn a_state_of_another_copy_is_refused() {
    run(|| {
        let (image, directory) = (image(), directory());
        let (path, target) = (image.path(), target(&directory));
        let state = directory.path().join("state");
        let resume = format!("--resume={}", state.display());
        let mut copy_one = Running::start(&limited(&[&resume, text(&path), text(&target)]));
        copy_one.wait_for(MIB);
        copy_one.signal("INT");
        assert_eq!(copy_one.end().code, Some(130));

        let other = raw(SIZE, &[]);
        let ended = copy(&[&resume, text(&other.path()), text(&target)]);
        let said = error(&ended);
        assert!(said.contains("is about another copy"), "{said}");
        assert!(
            said.contains(text(&path)) && said.contains(text(&other.path())),
            "{said}"
        );
        ended.expect(2);

        // The source has changed.
        fs::write(&path, pattern(2, SIZE)).unwrap();
        let ended = copy(&[&resume, text(&path), text(&target)]);
        assert!(error(&ended).contains("was changed since"), "{ended:#?}");
        ended.expect(2);

        fs::write(&state, "{}").unwrap();
        let ended = copy(&[&resume, text(&path), text(&target)]);
        assert!(error(&ended).contains("is not about a copy"), "{ended:#?}");
        ended.expect(2);
    });
}

#[test]
fn a_state_that_cannot_be_kept_is_an_error_at_once() {
    run(|| {
        let (image, directory) = (image(), directory());
        let state = directory.path().join("missing/state");
        let resume = format!("--resume={}", state.display());
        let ended = copy(&[&resume, text(&image.path()), text(&target(&directory))]);
        assert!(error(&ended).contains("cannot write"), "{ended:#?}");
        assert!(!ended.stderr.contains("copied"), "{ended:#?}");
        ended.expect(2);
    });
}

#[test]
fn a_state_is_not_kept_in_a_disk_that_is_copied() {
    run(|| {
        let (image, directory) = (image(), directory());
        let (path, target) = (image.path(), target(&directory));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        let same = link.join(target.file_name().unwrap());
        for state in [&target, &same, &path] {
            let resume = format!("--resume={}", state.display());
            let ended = copy(&[&resume, text(&path), text(&target)]);
            assert!(
                error(&ended).contains("expected a file of its own"),
                "{ended:#?}"
            );
            ended.expect(2);
            assert!(!target.exists());
        }
    });
}

#[test]
fn a_stream_is_not_resumed_and_the_destination_stays() {
    run(|| {
        let (image, directory) = (image(), directory());
        let target = target(&directory);
        fs::write(&target, "as it was").unwrap();
        let state = directory.path().join("state");
        let resume = format!("--resume={}", state.display());
        let mut command = command(["copy", &resume, "-", text(&target)]);
        let output = command
            .stdin(fs::File::open(image.path()).unwrap())
            .output();
        assert_eq!(output.unwrap().status.code(), Some(2));
        assert_eq!(fs::read(&target).unwrap(), b"as it was");
    });
}

#[test]
fn a_second_signal_is_not_waited_for() {
    run(|| {
        let directory = directory();
        // Requests take longer than the test.
        let Some(server) = Nbdkit::file(image())
            .filter("delay")
            .param("delay-read=100")
            .start()
        else {
            return;
        };
        let mut copy = Running::start(&[&server.uri(""), text(&target(&directory))]);
        copy.wait_for(0);
        copy.signal("INT");
        copy.wait_for_line("once more stops at once");
        copy.signal("INT");
        assert_eq!(copy.end().code, Some(130));
    });
}
