//! Events of a server, for the program that it is part of.

use super::NegotiationError;
use crate::client::causes;
use nbd_proto::{ExportName, HeaderStyle};
use std::{fmt, io, net::SocketAddr};

/// Something that happened, worth a line in a log.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A client has connected.
    Connected {
        /// The number of the connection, which no other one of this server has.
        connection: u64,
        /// The client.
        peer: &'a Peer,
    },
    /// A client has entered an export.
    Entered {
        /// The connection.
        connection: u64,
        /// The name by which it asked for the export.
        export: &'a ExportName,
        /// The headers that are used.
        mode: HeaderStyle,
        /// Whether TLS is up.
        encrypted: bool,
    },
    /// A connection is closed.
    Closed {
        /// The connection.
        connection: u64,
        /// The reason.
        ending: &'a CloseReason,
    },
    /// There were too many connections in use for one more, or the server is stopping.
    Refused {
        /// The client.
        peer: &'a Peer,
    },
    /// A connection could not be accepted, or no thread be started for it. The server goes on.
    AcceptFailed {
        /// The reason.
        error: &'a io::Error,
    },
}

#[cfg(feature = "tracing")]
impl Event<'_> {
    pub(super) fn trace(&self) {
        match self {
            Self::Connected { connection, peer } => {
                tracing::info!(connection, %peer, "a client connected");
            }
            Self::Entered {
                connection,
                export,
                mode,
                encrypted,
            } => tracing::info!(
                connection,
                export = export.as_str(),
                header_style = ?mode,
                encrypted,
                "a client entered an export"
            ),
            Self::Closed { connection, ending } if ending.is_clean() => {
                tracing::info!(connection, "a connection is closed: {ending}");
            }
            Self::Closed { connection, ending } => {
                tracing::warn!(connection, "a connection is closed: {ending}");
            }
            Self::Refused { peer } => tracing::warn!(%peer, "a client was refused"),
            Self::AcceptFailed { error } => {
                tracing::warn!("a connection could not be accepted: {error}");
            }
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// Of a TCP connection.
    Tcp(SocketAddr),
    /// Of a Unix socket.
    Unix,
    /// Of a virtual machine's socket.
    Vsock {
        /// The number of the virtual machine.
        cid: u32,
        /// Its port.
        port: u32,
    },
    /// Of a stream that the program brought.
    Other,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("a Unix socket"),
            Self::Vsock { cid, port } => write!(f, "vsock {cid}:{port}"),
            Self::Other => f.write_str("a stream"),
        }
    }
}

/// Reasons for which a connection is closed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client sent `NBD_CMD_DISC`, and everything was answered.
    Disconnected,
    /// The client gave up the negotiation, in the way that the protocol has for it.
    Aborted,
    /// The client closed the connection between two messages, without a word.
    Left,
    /// The server is stopping.
    Stopped,
    /// Nothing was sent or received for longer than the server allows.
    Idle,
    /// Nothing was sent or received for a while, and another client needed the place.
    Displaced,
    /// The client closed the connection in the middle of a request.
    Truncated,
    /// The export or the program's callback has panicked, so that there is no answer to a request.
    Panicked,
    /// The negotiation failed.
    Negotiation(NegotiationError),
    /// The client broke the protocol.
    Protocol(nbd_proto::Error),
    /// The connection broke.
    Io(io::Error),
}

impl CloseReason {
    /// Whether the connection ended as connections do.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        matches!(
            self,
            Self::Disconnected | Self::Aborted | Self::Left | Self::Stopped
        )
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disconnected => f.write_str("the client disconnected"),
            Self::Aborted => f.write_str("the client gave up the negotiation"),
            Self::Left => f.write_str("the client closed the connection"),
            Self::Stopped => f.write_str("the server is stopping"),
            Self::Idle => f.write_str("nothing was sent or received for too long"),
            Self::Displaced => f.write_str("the client was idle, and another one needed its place"),
            Self::Panicked => f.write_str("the export panicked"),
            Self::Truncated => {
                f.write_str("the client closed the connection in the middle of a request")
            }
            Self::Negotiation(error) => f.write_str(&causes(error)),
            Self::Protocol(error) => {
                write!(
                    f,
                    "the client broke the protocol ({}): {error}",
                    error.rule()
                )
            }
            Self::Io(error) => write!(f, "the connection broke: {error}"),
        }
    }
}
