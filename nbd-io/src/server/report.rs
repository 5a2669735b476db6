//! Reporting requests to the program.

use super::Peer;
use crate::runtime::Runtime;
use nbd_proto::{Command, ExportName, Failure, server::Request};
use std::{fmt, sync::Arc, time::Duration};

/// A request that an export has carried out, for logs and metrics.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome<'a> {
    /// The number of the connection.
    pub connection: u64,
    /// The client.
    pub peer: &'a Peer,
    /// The name by which it asked for the export.
    pub export: &'a ExportName,
    /// The command.
    pub command: Command,
    /// The first byte, 0 for a flush.
    pub offset: u64,
    /// The number of bytes, 0 for a flush.
    pub len: u64,
    /// The time that the export took, without the time in which the request waited to be carried
    /// out.
    pub took: Duration,
    /// The failure that the client is sent, unless the request succeeded.
    pub failure: Option<&'a Failure>,
}

/// A program's function for requests.
pub(super) type OnRequest = Arc<dyn Fn(&Outcome<'_>) + Send + Sync>;

/// Reports the requests of one connection, if the program wants that.
#[derive(Clone)]
pub(crate) struct Report(Option<Arc<Wanted>>);

struct Wanted {
    connection: u64,
    peer: Peer,
    export: ExportName,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    on_request: OnRequest,
}

/// A request that is being carried out.
#[derive(Debug)]
pub(super) struct Begun {
    info: RequestInfo,
    start: Duration,
}

impl Report {
    pub(super) fn new<R: Runtime>(
        on_request: Option<&OnRequest>,
        runtime: &R,
        connection: u64,
        peer: &Peer,
        export: &ExportName,
    ) -> Self {
        Self(on_request.map(|on_request| {
            let runtime = runtime.clone();
            Arc::new(Wanted {
                connection,
                peer: *peer,
                export: export.clone(),
                clock: Box::new(move || runtime.now()),
                on_request: on_request.clone(),
            })
        }))
    }

    /// Whether the program wants to know of requests.
    #[inline]
    pub(super) const fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// A request is about to be carried out. `None` unless the program wants to know.
    #[inline]
    pub(super) fn begin(&self, request: &Request) -> Option<Begun> {
        let wanted = self.0.as_ref()?;
        Some(Begun {
            info: RequestInfo::of(request),
            start: (wanted.clock)(),
        })
    }

    /// A request has been carried out.
    pub(super) fn end(&self, begun: Begun, result: &Result<(), Failure>) {
        let Some(wanted) = &self.0 else { return };
        let RequestInfo {
            command,
            offset,
            len,
        } = begun.info;
        (wanted.on_request)(&Outcome {
            connection: wanted.connection,
            peer: &wanted.peer,
            export: &wanted.export,
            command,
            offset,
            len,
            took: (wanted.clock)().saturating_sub(begun.start),
            failure: result.as_ref().err(),
        });
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").finish_non_exhaustive()
    }
}

/// The room for the extents of a block status reply, in bytes.
const LONG_STATUS: u64 = 2 << 20;

/// The subject of a request.
#[derive(Clone, Copy, Debug)]
struct RequestInfo {
    command: Command,
    offset: u64,
    len: u64,
}

impl RequestInfo {
    fn of(request: &Request) -> Self {
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
