//! Errors that keep connections from being accepted.

use std::io;

/// The reason why a connection is not accepted.
pub(super) enum AcceptErrorKind {
    /// It was gone before it was accepted, or the like.
    Passing,
    /// Descriptors, memory and the like are used up.
    Shortage,
    Final,
}

impl AcceptErrorKind {
    #[cfg(not(unix))]
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset => Self::Passing,
            io::ErrorKind::OutOfMemory => Self::Shortage,
            _ => Self::Final,
        }
    }

    #[cfg(unix)]
    pub(super) fn of(error: &io::Error) -> Self {
        use rustix::io::Errno;
        match Errno::from_io_error(error) {
            Some(
                Errno::INTR
                | Errno::AGAIN
                | Errno::CONNABORTED
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
                | Errno::PERM
                | Errno::TIMEDOUT,
            ) => Self::Passing,
            // The last one is of an event loop that cannot watch any more sockets.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC) => {
                Self::Shortage
            }
            _ => Self::Final,
        }
    }
}
