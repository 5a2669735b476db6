//! Errors, sorted by the reactions that a program has to them.
//!
//! The text of an error says all in one line: the step, with which server, the cause down to its root,
//! and advice, because many programs print an error by `{}` and nothing else. `source()` leads to
//! the causes as values. Their texts are part of the error's own; a program that prints the whole
//! chain repeats them.

mod advice;
#[cfg(test)]
mod tests;

use super::NegotiationError;
use nbd_proto::{Command, Errno, Failure, Misuse, OptionError, UriError, uri::Address};
use std::{fmt, io, sync::Arc, time::Duration};

/// Reasons for which a connection could not be made, or a command was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URI cannot be used.
    #[error(transparent)]
    Uri(Arc<UriError>),
    /// The call needs something that is not in this build or not on this system.
    #[error("{what}")]
    Unsupported {
        /// The missing thing, and the reason.
        what: &'static str,
    },
    /// The server cannot be reached.
    #[error("cannot connect to {to}: {}{}", causes(&**source), advice::on_connecting(source))]
    Connect {
        /// The address.
        to: String,
        /// The reason: of several addresses, the error of each.
        source: Arc<io::Error>,
    },
    /// The export cannot be entered, or a step on the way to it failed.
    #[error("cannot {step}: {}{}", causes(&**source), advice::on_negotiation(source))]
    Negotiation {
        /// The step that failed, and with which server: `enter export "disk" of localhost:10809`.
        step: String,
        /// The reason.
        source: Arc<NegotiationError>,
    },
    /// TLS cannot be set up.
    #[cfg(feature = "tls")]
    #[error("cannot set up TLS: {}", causes(&**.0))]
    Tls(#[source] Arc<crate::tls::TlsError>),
    /// The command makes no sense on this connection, and nothing was sent. The connection goes on.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// The server failed the command. The connection goes on.
    #[error("{command} failed: {source}")]
    Failed {
        /// The command.
        command: Command,
        /// The server's answer.
        source: Failure,
    },
    /// No reply came in time. The server may or may not have carried out the command. The
    /// connection goes on.
    #[error("{command} was not answered within {after:?}")]
    Timeout {
        /// The command.
        command: Command,
        /// The time that was waited.
        after: Duration,
    },
    /// The flush was carried out, but writes that were answered before a connection was lost may be
    /// gone for good. Every flush fails so from then on, except through a handle of a
    /// [new epoch](super::tasks::Client::new_epoch).
    #[error("writes that were not flushed may have been lost with an earlier connection")]
    Unflushed,
    /// The connection is over, for every command that was in flight and every later one.
    #[error("the connection is over: {}", causes(&**.0))]
    Lost(#[source] Arc<Lost>),
}

/// Reasons for which a connection is over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// The transport failed.
    #[error("{}", causes(.0))]
    Io(#[from] io::Error),
    /// The server broke the protocol.
    #[error("the server broke the protocol ({rule}): {0}", rule = .0.rule())]
    Protocol(#[from] nbd_proto::Error),
    /// The server closed the connection without being asked to.
    #[error("the server closed the connection")]
    Closed,
    /// The server has said that it shuts down.
    #[error("the server has said that it shuts down")]
    ShutsDown,
    /// A request took too long, and the server has sent nothing at all since it was sent.
    #[error("the server has sent nothing for {after:?}, although it owes replies")]
    Silent {
        /// Time limit of a request.
        after: Duration,
    },
    /// Another connection was made, and the export is not the same any more.
    #[error("on another connection the export differs: {what}")]
    Changed {
        /// The property that differs.
        what: &'static str,
    },
    /// The client makes all of its connections anew: another one was lost, or the program asked for that
    /// (`reconnect_now`).
    #[error("the client has given it up, since it makes all connections anew")]
    GivenUp,
    /// The connection was lost, and no new one could be made.
    #[error("the connection was lost and not restored (attempts: {attempts}): {source}")]
    NotRestored {
        /// Number of attempts.
        attempts: u32,
        /// The error of the last attempt, or the loss of the connection if there was none.
        source: Arc<Error>,
    },
    /// This side disconnected.
    #[error("this side has disconnected")]
    Disconnected,
}

impl Error {
    /// The server's error number, if the server failed the command.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Failed { source, .. } => Some(source.errno),
            _ => None,
        }
    }

    /// The server's refusal, if it refused an option, so that the negotiation goes on.
    #[must_use]
    pub fn refusal(&self) -> Option<&OptionError> {
        match self {
            Self::Negotiation { source, .. } => match &**source {
                NegotiationError::Refused(refusal) => Some(refusal),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether connecting has failed in a way that may pass: the server could not be reached, or the
    /// connection ended before the server had answered. A refusal does not pass.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        use NegotiationError::{Closed, Io};
        match self {
            Self::Connect { .. } => true,
            Self::Negotiation { source, .. } => matches!(**source, Io { .. } | Closed { .. }),
            _ => false,
        }
    }

    /// Whether the connection is over.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// A server could not be reached.
    #[must_use]
    pub fn connect(server: impl fmt::Display, error: io::Error) -> Self {
        Self::Connect {
            to: server.to_string(),
            source: Arc::new(error),
        }
    }

    /// A step of the negotiation failed; see [`Error::Negotiation`].
    #[must_use]
    pub fn negotiation(step: impl Into<String>, error: NegotiationError) -> Self {
        Self::Negotiation {
            step: step.into(),
            source: Arc::new(error),
        }
    }

    /// The end of a connection.
    #[must_use]
    pub fn lost(why: impl Into<Lost>) -> Self {
        Self::Lost(Arc::new(why.into()))
    }
}

/// Whether an answer to a replayed change means that the server will never take it.
#[must_use]
pub fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Lost(_) | Error::Timeout { .. } => false,
        Error::Failed { source, .. } => source.errno != Errno::Shutdown,
        _ => true,
    }
}

/// An error with everything behind it that it does not say itself, for the texts of errors that say
/// all.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }
    text
}

/// The name of an address in errors.
#[must_use]
pub fn server_name(address: &Address) -> String {
    match address {
        Address::Tcp { host, port, .. } if host.as_str().contains(':') => {
            format!("[{}]:{port}", host.as_str())
        }
        Address::Tcp { host, port, .. } => format!("{}:{port}", host.as_str()),
        Address::Unix { path, .. } => String::from_utf8_lossy(path).into_owned(),
        Address::Abstract { name, .. } => format!("@{}", String::from_utf8_lossy(name)),
        Address::Vsock { cid, port, .. } => format!("vsock {cid}:{port}"),
        _ => "the server".to_owned(),
    }
}

impl From<UriError> for Error {
    fn from(error: UriError) -> Self {
        Self::Uri(Arc::new(error))
    }
}

#[cfg(feature = "tls")]
impl From<crate::tls::TlsError> for Error {
    fn from(error: crate::tls::TlsError) -> Self {
        Self::Tls(Arc::new(error))
    }
}

/// The failure that an export over a client passes on to its own clients: the other server's, or
/// [`Errno::Io`] if that could not be asked.
///
/// ```
/// use nbd_io::client::Error;
/// use nbd_proto::{Command, Errno, Failure};
///
/// let full = Error::Failed { command: Command::Write, source: Errno::NoSpc.into() };
/// assert_eq!(Failure::from(full).errno, Errno::NoSpc);
/// let late = Error::Timeout { command: Command::Read, after: std::time::Duration::from_secs(60) };
/// assert_eq!(Failure::from(late).errno, Errno::Io);
/// ```
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let errno = match error {
            // That server shuts down, and not the one that passes this on.
            Error::Failed { source, .. } if source.errno != Errno::Shutdown => return source,
            Error::Misuse(_) => Errno::Inval,
            _ => Errno::Io,
        };
        Self {
            message: error.to_string().into(),
            ..errno.into()
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Failed { source, .. } => match source.errno.normalized() {
                Errno::Perm => io::ErrorKind::PermissionDenied,
                Errno::NoMem => io::ErrorKind::OutOfMemory,
                Errno::Inval => io::ErrorKind::InvalidInput,
                Errno::NoSpc => io::ErrorKind::StorageFull,
                Errno::NotSup => io::ErrorKind::Unsupported,
                Errno::Shutdown => io::ErrorKind::ConnectionAborted,
                _ => io::ErrorKind::Other,
            },
            Error::Uri(_) | Error::Misuse(_) => io::ErrorKind::InvalidInput,
            Error::Unsupported { .. } => io::ErrorKind::Unsupported,
            Error::Connect { source, .. } => source.kind(),
            Error::Timeout { .. } => io::ErrorKind::TimedOut,
            Error::Lost(lost) => match &**lost {
                Lost::Io(error) => error.kind(),
                Lost::Protocol(_) | Lost::Changed { .. } => io::ErrorKind::InvalidData,
                Lost::Closed => io::ErrorKind::UnexpectedEof,
                Lost::Silent { .. } => io::ErrorKind::TimedOut,
                Lost::GivenUp | Lost::NotRestored { .. } | Lost::ShutsDown => {
                    io::ErrorKind::ConnectionAborted
                }
                Lost::Disconnected => io::ErrorKind::NotConnected,
            },
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
