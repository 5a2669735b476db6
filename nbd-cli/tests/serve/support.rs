//! A server that runs, and whose end is waited for.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio},
};
use tempfile::TempDir;

/// The command `nbd`.
pub(crate) fn nbd() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nbd"))
}

/// Runs `nbd` to its end.
pub(crate) fn run_nbd<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let mut command = nbd();
    command.args(args).stdin(Stdio::null());
    command.output().unwrap()
}

/// The standard output of a command that succeeded.
#[track_caller]
pub(crate) fn succeeded(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The standard error of a command that failed with an error.
#[track_caller]
pub(crate) fn failed(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

/// A directory, and `nbd serve` at a Unix socket in it.
pub(crate) struct Serving {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    dir: TempDir,
}

impl Serving {
    /// Starts it with these arguments, split at spaces, in a directory that `prepare` fills.
    pub(crate) fn with(prepare: impl FnOnce(&Path), args: &str) -> Self {
        Self::prepared(prepare, |command, dir| {
            let socket = dir.join("socket");
            command
                .arg("--unix")
                .arg(socket)
                .args(args.split_whitespace());
        })
    }

    /// Starts it as [`with`](Self::with), in an empty directory.
    pub(crate) fn new(args: &str) -> Self {
        Self::with(|_| {}, args)
    }

    /// Starts it with other arguments.
    pub(crate) fn prepared(
        prepare: impl FnOnce(&Path),
        complete: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("nbd-").tempdir().unwrap();
        prepare(dir.path());
        let mut command = nbd();
        command
            .arg("serve")
            .current_dir(dir.path())
            .stdin(Stdio::null());
        complete(&mut command, dir.path());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            stdout,
            stderr,
            dir,
        }
    }

    /// The next line that it prints: a URI, once clients can connect.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut said = String::new();
            self.stderr.read_to_string(&mut said).unwrap();
            panic!("it ended before it served: {said}");
        }
        line.trim_end().to_owned()
    }

    /// The next line that it says on standard error.
    pub(crate) fn said(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits until clients can connect.
    pub(crate) fn ready(mut self) -> Self {
        let uri = self.line();
        assert!(uri.starts_with("nbd"), "{uri}");
        self
    }

    /// The URI of an export at the Unix socket.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.path("socket").display()
        )
    }

    /// A file in its directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The content of a file of its directory.
    pub(crate) fn contents(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The number of its process.
    #[cfg(all(feature = "cloud", target_os = "linux"))]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the process itself, while its standard error may still be open elsewhere.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        // To wait would close it before, which ends commands that read it.
        let _stdin = self.child.stdin.take();
        self.child.wait().unwrap()
    }

    /// Waits for its end, and returns its status and its standard error.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), said)
    }

    /// Stops it, and returns its standard error.
    pub(crate) fn stop(self) -> String {
        self.signal(Signal::TERM);
        let (status, said) = self.wait();
        assert_eq!(status.code(), Some(0), "{said}");
        said
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A disk of so many bytes of data that are nowhere the same.
pub(crate) fn image(dir: &Path, name: &str, seed: u64, len: u64) {
    fs::write(dir.join(name), interop::pattern(seed, len)).unwrap();
}
