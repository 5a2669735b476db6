//! The end of commands: by signals, for want of descriptors, and with standard output that takes
//! nothing.

use crate::support::command;
use interop::deadline;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    time::Duration,
};

/// Time limit of a test on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Commands that print a result and need no server.
const PRINTING: &[&[&str]] = &[
    &["info"],
    &["info", "--json"],
    &["info", "--size"],
    &["list"],
    &["list", "--names"],
    &["list", "--json"],
    &["map"],
    &["map", "--totals"],
    &["map", "--json"],
    &["dump"],
    &["copy", "--hash"],
    &["compare"],
    &["compare", "--json"],
    &["ping", "--count=1"],
    &["bench", "--time=0.01", "--op=read"],
    &["bench", "--time=0.01", "--op=read", "--json"],
    &["check", "--rule=S-159"],
    &["check", "--list-rules"],
    &["check", "--list-rules", "--json"],
    &["generate", "completions", "bash"],
    &["--help"],
    &["--version"],
    &["info", "--help"],
];

#[test]
fn a_closed_pipe_is_quiet() {
    deadline(LIMIT, || {
        for args in PRINTING {
            let (reader, writer) = std::io::pipe().expect("a pipe can be made");
            drop(reader);
            let mut nbd = command(*args);
            let ended = nbd.stdout(writer).output().expect("it starts");
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(said, "", "{args:?}");
            assert_eq!(ended.status.code(), Some(2), "{args:?}");
        }
    });
}

#[test]
fn results_that_cannot_be_printed_are_an_error() {
    deadline(LIMIT, || {
        for args in PRINTING {
            let full = fs::File::options().write(true).open("/dev/full");
            let mut nbd = command(*args);
            nbd.stdout(full.expect("Linux has it"));
            let ended = nbd.output().expect("it starts");
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(2), "{args:?}: {said}");
            let cause = "cannot write to standard output";
            assert!(said.contains(cause), "{args:?}: {said}");
        }
    });
}

#[test]
fn too_few_descriptors_are_an_error_with_the_limit_and_a_remedy() {
    deadline(LIMIT, || {
        for args in [
            &["info"][..],
            &["list"],
            &["map"],
            &["dump"],
            &["copy"],
            &["compare"],
            &["ping"],
            &["bench", "--time=0.01", "--op=read"],
            &["check", "--rule=S-159"],
            &["object", "info", "file:///nonexistent"],
            &["serve", "--memory=1M", "--", "true"],
            &["serve", "--memory=1M", "--runtime=tokio", "--", "true"],
        ] {
            // With fewer than 4 the system cannot load a program with shared libraries, nor with those that
            // a test runner has left open.
            let close = "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-";
            for limit in 4..=20 {
                let script = format!("{close} && ulimit -n {limit} && exec \"$@\"");
                let ended = Command::new("sh")
                    .args(["-c", &script, "sh"])
                    .arg(env!("CARGO_BIN_EXE_nbd"))
                    .args(args)
                    .stdin(Stdio::null())
                    .output()
                    .expect("there is a shell");
                let said = String::from_utf8_lossy(&ended.stderr);
                assert_eq!(ended.status.code(), Some(2), "{args:?} {limit}: {said}");
                let limit = format!("the limit of open descriptors is {limit};");
                assert!(said.contains(&limit), "{args:?}: {said}");
                assert!(said.ends_with("\"ulimit -n 1024\" raises it\n"), "{said}");
                assert_eq!(said.lines().count(), 1, "{said}");
            }
        }
    });
}

#[test]
fn nothing_is_left_of_a_command_that_was_interrupted() {
    deadline(LIMIT, || {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let left = || fs::read_dir(dir.path()).expect("it is there").count();
        for signal in [Signal::INT, Signal::TERM] {
            let mut nbd = command(["bench", "--time", "2"]);
            nbd.env("TMPDIR", dir.path()).stdout(Stdio::piped());
            let mut child = nbd.spawn().expect("it starts");
            // The beginning of a table, of which the rest takes long.
            let stdout = child.stdout.as_mut().expect("a pipe");
            stdout.read_exact(&mut [0; 1]).expect("the table begins");
            assert_eq!(left(), 1);
            kill_process(Pid::from_child(&child), signal).expect("it runs");
            let status = child.wait().expect("it ends");
            assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
            assert_eq!(left(), 0);
        }
    });
}

#[test]
fn nothing_is_left_of_a_command_that_is_interrupted_as_it_begins() {
    deadline(LIMIT, || {
        let certificates = ["check", "--listen=0", "--tls=always", "--", "true"];
        let mut commands = vec![&certificates[..]];
        commands.push(&["serve", "--memory=1M", "--", "sleep", "1"]);
        commands.extend(PRINTING.iter().filter(|args| match args[0] {
            "check" => !args.contains(&"--list-rules"),
            name => name != "generate" && !name.starts_with("--") && !args.contains(&"--help"),
        }));
        for (args, signal) in commands
            .iter()
            .flat_map(|args| [Signal::INT, Signal::TERM].map(|signal| (args, signal)))
        {
            let dir = tempfile::tempdir().expect("a directory can be made");
            let left = || fs::read_dir(dir.path()).expect("it is there").count();
            let mut nbd = command(*args);
            nbd.env("TMPDIR", dir.path());
            nbd.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = nbd.spawn().expect("it starts");
            // As soon as there is something that could be left.
            while left() == 0 && child.try_wait().expect("it is a child").is_none() {}
            // It may have ended.
            let _ = kill_process(Pid::from_child(&child), signal);
            child.wait().expect("it ends");
            assert_eq!(left(), 0, "{args:?} {signal:?}");
        }
    });
}
