//! The end of a command: its answer or its error, and the exit code of both.

use crate::{descriptors, text::printable};
use std::{
    error::Error as StdError,
    fmt,
    io::{self, ErrorKind, Write},
    process::ExitCode,
};

/// The result of a command that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Yes, the same, done.
    Yes,
    /// No, different.
    No,
    /// The exit code of a command that was run for the user.
    Code(u8),
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// Reasons for which a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Standard output could not be written. A closed pipe is no reason for a message.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The user stopped the command, which has cleaned up.
    #[error("interrupted")]
    Interrupted,
    /// A step failed.
    #[error("{what}")]
    Step {
        /// The step and its object.
        what: String,
        /// Its cause.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Something that its text says in full.
    #[error("{0}")]
    Message(String),
    /// A client's error, whose text names the step, the server and the cause.
    #[error(transparent)]
    Client(#[from] nbd_tokio::Error),
}

pub(crate) type Result<T = Answer, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error of a text.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Message(message.into())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            _ => 2,
        }
    }

    /// Whether there is a reader for a message.
    fn is_quiet(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == ErrorKind::BrokenPipe)
    }
}

/// Adds to an error which step failed.
pub(crate) trait Context<T> {
    /// Says which step has failed.
    fn step<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn step<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::Step {
            what: what().into(),
            source: error.into(),
        })
    }
}

/// Prints an error, and says with which code the process ends: 0 for yes, 1 for no, 2 for an error,
/// 130 if the user stopped it.
pub(crate) fn report(result: Result) -> ExitCode {
    match result {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Ok(Answer::Code(code)) => ExitCode::from(code),
        Err(error) => {
            if !error.is_quiet() {
                print_error(&error);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints an error on standard error: a line, and each cause that is not in that line, indented. If
/// that cannot be written there is no better place.
fn print_error(error: &Error) {
    let mut stderr = anstream::stderr().lock();
    let red = clap::builder::styling::AnsiColor::Red.on_default().bold();
    let remedy = descriptors::remedy(error).unwrap_or_default();
    let _ = writeln!(
        stderr,
        "{red}error:{red:#} {}{remedy}",
        printable(&ErrorLine(error))
    );
    let mut printed = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !printed.contains(&text) {
            let _ = writeln!(stderr, "  {}", printable(&text));
            printed.push_str(&text);
        }
        source = cause.source();
    }
}

/// Something to print on standard error beside errors, one line at a time. It may have no reader.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    // In one piece, so that lines of threads do not get mixed up.
    let _ = anstream::stderr().write_all(format!("{}\n", printable(&line)).as_bytes());
}

struct ErrorLine<'a>(&'a Error);

impl fmt::Display for ErrorLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
