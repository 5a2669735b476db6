//! Running the command `nbd`.

use serde_json::Value;
use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, Stdio},
};

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The command line, for the messages of failed tests.
    #[expect(dead_code, reason = "what only `Debug` reads")]
    pub(crate) command: String,
    /// The exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

/// The command, to be run.
pub(crate) fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nbd"));
    command
        .args(args)
        .stdin(Stdio::null())
        .env_remove("NBD_LOG");
    command
}

/// The search path by which a shell finds the command, before all others.
pub(crate) fn search_path() -> String {
    let bin = Path::new(env!("CARGO_BIN_EXE_nbd")).parent();
    let bin = bin.expect("a program is in a directory").display();
    format!("{bin}:{}", std::env::var("PATH").unwrap_or_default())
}

/// Runs the command to its end.
pub(crate) fn nbd<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
    let mut command = command(args);
    let output = command.output().expect("the command can be started");
    let text = |bytes| String::from_utf8(bytes).expect("the command prints UTF-8");
    Ended {
        command: format!("{command:?}"),
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

impl Ended {
    /// Its standard output, if it ended with this exit code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self.stdout
    }

    /// The JSON document that it has printed, if it succeeded.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let said = self.expect(0);
        serde_json::from_str(&said).expect("--json prints JSON")
    }
}
