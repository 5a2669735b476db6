//! The end of the server, and the command for which it runs.

use crate::support::{Serving, image, run_nbd, succeeded};
use interop::{Certificates, MIB, Peer, require, run};
use nbd_blocking::Errno;
use rustix::process::Signal;
use std::{
    fs,
    process::{Command, Stdio},
    thread,
};

/// As many as a server takes at once.
const REQUESTS: u64 = 32;

#[test]
fn the_server_ends_with_its_command_and_exits_as_it_does() {
    run(|| {
        for (script, code) in [("exit 7", 7), ("true", 0), ("kill -9 $$", 137)] {
            let output = run_nbd(["serve", "--memory", "1M", "--", "sh", "-c", script]);
            assert_eq!(output.status.code(), Some(code), "{script}");
        }
        let info = format!(
            "exec {} info --size \"$NBD_URI\"",
            env!("CARGO_BIN_EXE_nbd")
        );
        let output = run_nbd(["serve", "--memory", "a/b=2M", "--", "sh", "-c", &info]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "2097152\n");
    });
}

#[test]
fn another_runtime_serves_too() {
    run(|| {
        let serving = Serving::new("--runtime tokio --memory 1M --max-requests 1000").ready();
        assert_eq!(
            succeeded(&run_nbd(["info", "--size", &serving.uri("")])),
            "1048576\n"
        );
        assert_eq!(serving.stop(), "");
    });
}

#[test]
fn a_command_ends_with_the_server() {
    run(|| {
        let script = "echo started; exec sleep 1000";
        let mut serving = Serving::prepared(
            |_| {},
            |command, _| {
                command.args(["--memory", "1M", "--", "sh", "-c", script]);
            },
        );
        assert_eq!(serving.line(), "started");
        serving.signal(Signal::TERM);
        assert_eq!(serving.wait().0.code(), Some(128 + 15));
    });
}

#[test]
fn no_reply_is_lost_when_the_server_stops() {
    run(|| {
        let serving = Serving::new("--memory 64M").ready();
        let client = nbd_blocking::connect(&serving.uri("")).unwrap();
        let mut queue = client.queue();
        for number in 0..REQUESTS {
            queue.read(vec![0; 1 << 20], number * MIB).unwrap();
        }
        queue.send().unwrap();
        serving.signal(Signal::TERM);
        let mut replies = 0;
        while let Some(completion) = queue.complete().unwrap() {
            match completion.into_buffer() {
                Ok(buffer) => assert_eq!(buffer.len(), 1 << 20),
                Err(error) => assert_eq!(error.errno(), Some(Errno::Shutdown), "{error}"),
            }
            replies += 1;
        }
        assert_eq!(replies, REQUESTS);
        let (status, said) = serving.wait();
        assert_eq!(status.code(), Some(0), "{said}");
    });
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    run(|| {
        // A command that is not impressed, until its standard input ends.
        let script = "trap '' TERM; echo started; exec cat";
        let mut serving = Serving::prepared(
            |_| {},
            |command, dir| {
                command
                    .args(["--memory", "1M", "--unix"])
                    .arg(dir.join("socket"));
                command
                    .args(["--", "sh", "-c", script])
                    .stdin(Stdio::piped());
            },
        );
        assert_eq!(serving.line(), "started");
        serving.signal(Signal::TERM);
        let socket = serving.path("socket");
        while socket.exists() {
            thread::yield_now();
        }
        serving.signal(Signal::TERM);
        assert_eq!(serving.ended().code(), Some(130));
    });
}

#[test]
fn examples_of_the_help_work() {
    run(|| {
        let help = succeeded(&run_nbd(["serve", "--help"]));
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        assert_eq!(examples.lines().count(), 5);
        let dir = tempfile::tempdir().unwrap();
        for file in ["disk.img", "disk1.img", "disk2.img"] {
            image(dir.path(), file, 1, MIB);
        }
        fs::create_dir(dir.path().join("images")).unwrap();
        let certificates = Certificates::new();
        // Stores of others are no test.
        let examples = examples.lines().filter(|line| !line.contains("s3://"));
        for line in examples {
            // The explanation stands apart.
            let example = line.trim().split("      ").next().unwrap();
            let mut line = example
                .replace("/tmp/nbd.sock", "nbd.sock")
                .replace(":9100", ":0");
            line = line.replace("/etc/nbd", certificates.dir().to_str().unwrap());
            if !line.contains(" -- ") {
                // A server without an end is no test.
                line.push_str(" -- true");
            } else if require(Peer::QemuImg).is_none() {
                continue;
            }
            let line = line.replacen("nbd ", "\"$0\" ", 1);
            let mut shell = Command::new("sh");
            shell.args(["-c", &line, env!("CARGO_BIN_EXE_nbd")]);
            succeeded(&shell.current_dir(dir.path()).output().unwrap());
        }
    });
}
