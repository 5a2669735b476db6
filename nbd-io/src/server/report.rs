//! Telling a program what became of requests.

use nbd_proto::{Command, Failure, server::Request};
use std::{fmt, sync::Arc};

/// A request that an export has carried out, for logs and counters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome<'a> {
    /// The number of the connection.
    pub connection: u64,
    /// What was to be done.
    pub command: Command,
    /// Where, in bytes; 0 for a flush.
    pub offset: u64,
    /// How much, in bytes; 0 for a flush.
    pub len: u64,
    /// What the client is told, unless it succeeded.
    pub failure: Option<&'a Failure>,
}

/// What a program wants to be called with.
pub(super) type OnRequest = Arc<dyn Fn(&Outcome<'_>) + Send + Sync>;

/// Tells of the requests of one connection.
#[derive(Clone)]
pub(super) struct Report {
    pub(super) connection: u64,
    pub(super) on_request: Option<OnRequest>,
}

impl Report {
    /// Whether there is anybody to be told.
    pub(super) const fn is_wanted(&self) -> bool {
        self.on_request.is_some()
    }

    pub(super) fn tell(&self, subject: Subject, told: Result<(), Failure>) {
        if let Some(on_request) = &self.on_request {
            let Subject {
                command,
                offset,
                len,
            } = subject;
            on_request(&Outcome {
                connection: self.connection,
                command,
                offset,
                len,
                failure: told.as_ref().err(),
            });
        }
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").finish_non_exhaustive()
    }
}

/// What the extents of a block status reply may take up, in bytes.
const LONG_STATUS: u64 = 2 << 20;

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Subject {
    pub(super) fn of(request: &Request) -> Self {
        let (command, offset, len) = match request {
            Request::Read { offset, len, .. } => (Command::Read, *offset, u64::from(*len)),
            Request::Write { offset, len, .. } => (Command::Write, *offset, u64::from(*len)),
            Request::Flush { .. } => (Command::Flush, 0, 0),
            Request::Trim { offset, len, .. } => (Command::Trim, *offset, *len),
            Request::Cache { offset, len, .. } => (Command::Cache, *offset, *len),
            Request::WriteZeroes { offset, len, .. } => (Command::WriteZeroes, *offset, *len),
            Request::BlockStatus { offset, len, .. } => (Command::BlockStatus, *offset, *len),
        };
        Self {
            command,
            offset,
            len,
        }
    }
}

/// Bytes of payload that a request or its reply has, or may have.
#[inline]
pub(super) fn payload_len(request: &Request) -> u64 {
    match request {
        Request::Read { len, .. } | Request::Write { len, .. } => u64::from(*len),
        Request::BlockStatus { .. } => LONG_STATUS,
        Request::Flush { .. }
        | Request::Trim { .. }
        | Request::Cache { .. }
        | Request::WriteZeroes { .. } => 0,
    }
}
