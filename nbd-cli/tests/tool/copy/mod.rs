//! `nbd copy` and `nbd compare` against servers, tools and disks of others.

mod disks;
mod failures;
mod incremental;
mod interrupted;

use crate::support::{Ended, command, nbd};
use interop::{Image, Nbdkit, Peer, Server, require};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};
use tempfile::TempDir;

/// A directory for the files of a test.
fn directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("nbd-").tempdir();
    directory.expect("a temporary directory can be made")
}

/// Runs `nbd copy`.
fn copy(args: &[&str]) -> Ended {
    nbd(["copy"].iter().chain(args))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our own paths are text")
}

/// A disk in a server, which is all zeroes.
fn memory(size: u64) -> Option<Server> {
    Nbdkit::new("memory").param(size.to_string()).start()
}

/// A raw image with these bytes at some places.
fn raw(size: u64, parts: &[(u64, &[u8])]) -> Image {
    let image = Image::raw(size);
    let file = fs::File::options().write(true).open(image.path());
    let file = file.expect("our own image can be opened");
    for (offset, data) in parts {
        let written = file.write_all_at(data, *offset);
        written.expect("our own image can be written");
    }
    image
}

/// Number of allocated bytes of a file.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("the file is there").blocks() * 512
}

/// Whether `qemu-img compare` finds two disks the same; that of a format, and a raw one.
#[track_caller]
fn assert_identical(format: &str, disk: &str, raw: &str) {
    let Some(qemu_img) = require(Peer::QemuImg) else {
        return;
    };
    let compared = qemu_img.run(["compare", "-U", "-f", format, "-F", "raw", disk, raw]);
    compared.expect_success();
}

/// A copy or a comparison that runs, and whose progress is seen.
struct Running {
    child: Child,
    progress: BufReader<std::process::ChildStderr>,
    said: String,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        Self::run("copy", args)
    }

    fn compare(args: &[&str]) -> Self {
        Self::run("compare", args)
    }

    fn run(name: &str, args: &[&str]) -> Self {
        let args = [name, "--progress", "json"]
            .into_iter()
            .chain(args.iter().copied());
        let mut child = command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command can be started");
        let stderr = child.stderr.take().expect("it is a pipe");
        Self {
            child,
            progress: BufReader::new(stderr),
            said: String::new(),
        }
    }

    /// Waits until so much is copied.
    #[track_caller]
    fn wait_for(&mut self, bytes: u64) {
        self.wait_until(|line| {
            let progress = serde_json::from_str::<serde_json::Value>(line);
            progress.is_ok_and(|progress| progress["bytes"].as_u64() >= Some(bytes))
        });
    }

    /// Waits until it says something.
    #[track_caller]
    fn wait_for_line(&mut self, what: &str) {
        self.wait_until(|line| line.contains(what));
    }

    #[track_caller]
    fn wait_until(&mut self, is_it: impl Fn(&str) -> bool) {
        loop {
            let mut line = String::new();
            let len = self.progress.read_line(&mut line);
            assert_ne!(len.expect("a pipe can be read"), 0, "ended: {}", self.said);
            self.said.push_str(&line);
            if is_it(&line) {
                return;
            }
        }
    }

    /// Sends a signal.
    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let sent = std::process::Command::new("sh")
            .args(["-c", &kill])
            .status();
        assert!(sent.expect("there is a shell").success());
    }

    fn end(mut self) -> Ended {
        let mut rest = String::new();
        let read = self.progress.read_to_string(&mut rest);
        read.expect("a pipe can be read");
        let output = self.child.wait_with_output();
        let output = output.expect("our own child can be waited for");
        Ended {
            command: "nbd".into(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into(),
            stderr: self.said + &rest,
        }
    }
}

/// The error in the output.
fn error(ended: &Ended) -> &str {
    let mut lines = ended.stderr.lines();
    lines
        .find(|line| line.starts_with("error: "))
        .unwrap_or_else(|| panic!("no error: {ended:#?}"))
}

fn target(directory: &TempDir) -> PathBuf {
    directory.path().join("target")
}
