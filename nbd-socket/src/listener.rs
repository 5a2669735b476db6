//! Listening sockets.

use crate::Socket;
use nbd_io::server::Peer;
use socket2::TcpKeepalive;
use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    time::Duration,
};

/// A client that says nothing for so long is asked whether it is still there, every ten seconds
/// and six times.
const SILENCE: Duration = Duration::from_secs(60);
const PROBE: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// A listening stream socket that does not wait, for an event loop.
#[derive(Debug)]
pub struct Listener(socket2::Socket);

impl Listener {
    /// Takes over a listening socket, such as one of the standard library's, which becomes a
    /// non-blocking one.
    ///
    /// # Errors
    ///
    /// When its mode cannot be changed.
    pub fn new(listener: impl Into<OwnedFd>) -> io::Result<Self> {
        let listener = socket2::Socket::from(listener.into());
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Listens on a Unix socket, in place of one that a server has left behind.
    ///
    /// A socket that still answers, and a file that is no socket, are not touched. The file stays
    /// when the listener is dropped.
    ///
    /// # Errors
    ///
    /// Of the kind [`io::ErrorKind::AddrInUse`] if there is something that is in use; whatever else
    /// keeps the socket from being made.
    pub fn bind_unix(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        }
        .and_then(Self::new)
    }

    /// Takes the listening sockets that the process was started with, as `systemd` and others hand
    /// them over by `LISTEN_FDS` and `LISTEN_PID` (socket activation). There are none if it was not
    /// started so.
    ///
    /// To be called once, before there are other threads: the sockets are given away, and the
    /// variables are taken out of the environment so that no other process takes them for its own.
    ///
    /// # Errors
    ///
    /// When one of them is no listening socket of TCP or of the file system.
    pub fn inherited() -> io::Result<Vec<Self>> {
        let mut inherited = listenfd::ListenFd::from_env();
        let mut listeners = Vec::with_capacity(inherited.len());
        for at in 0..inherited.len() {
            // One of another kind stays where it is.
            let fd = match inherited.take_unix_listener(at) {
                Ok(listener) => listener.map(OwnedFd::from),
                Err(_) => inherited.take_tcp_listener(at)?.map(OwnedFd::from),
            };
            listeners.extend(fd.map(Self::new).transpose()?);
        }
        Ok(listeners)
    }

    /// The next connection, as a non-blocking socket, and who is at its other end.
    ///
    /// Over TCP, `TCP_NODELAY` is set, and a client that says nothing for a minute is asked whether
    /// it is still there (`SO_KEEPALIVE`).
    ///
    /// # Errors
    ///
    /// What the system says, unaltered; of the kind [`io::ErrorKind::WouldBlock`] if there is no
    /// connection.
    pub fn accept(&self) -> io::Result<(Socket, Peer)> {
        let (socket, address) = self.0.accept()?;
        let peer = if let Some(address) = address.as_socket() {
            let keepalive = TcpKeepalive::new()
                .with_time(SILENCE)
                .with_interval(PROBE)
                .with_retries(PROBES);
            // Some systems refuse these when the client is gone, which is no failure of the
            // listener.
            let _ = socket.set_tcp_nodelay(true);
            let _ = socket.set_tcp_keepalive(&keepalive);
            Peer::Tcp(address)
        } else {
            vsock(&address).unwrap_or(Peer::Unix)
        };
        let socket = Socket::new(OwnedFd::from(socket))?.nonblocking()?;
        Ok((socket, peer))
    }
}

#[cfg(target_os = "linux")]
fn vsock(address: &socket2::SockAddr) -> Option<Peer> {
    let (cid, port) = address.as_vsock_address()?;
    Some(Peer::Vsock { cid, port })
}

#[cfg(not(target_os = "linux"))]
fn vsock(_: &socket2::SockAddr) -> Option<Peer> {
    None
}

/// Whether it is a socket to which nobody listens.
fn is_stale(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_nobody_listens_to_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = Listener::bind_unix(&path).unwrap();
        let error = Listener::bind_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let second = Listener::bind_unix(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(second);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "no socket").unwrap();
        let error = Listener::bind_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"no socket");
    }
}
