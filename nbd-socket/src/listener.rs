//! Listening sockets.

use crate::{Socket, vsock};
use nbd_io::server::Peer;
use socket2::{TcpKeepalive, Type};
use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

/// A client that says nothing for so long is asked whether it is still there, every ten seconds
/// and six times.
const SILENCE: Duration = Duration::from_secs(60);
const PROBE: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// `VMADDR_CID_ANY`, and `VMADDR_PORT_ANY` as well.
const ANY: u32 = u32::MAX;

/// How many connections may wait to be accepted, as with the listeners of the standard library.
const BACKLOG: i32 = 4096;

/// A listening stream socket that does not wait, for an event loop.
#[derive(Debug)]
pub struct Listener {
    socket: socket2::Socket,
    /// The name in the file system that was made for it.
    _name: Option<Name>,
}

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
        Ok(Self {
            socket: listener,
            _name: None,
        })
    }

    /// Listens on a Unix socket, in place of one that a server has left behind.
    ///
    /// A socket that still answers, and a file that is no socket, are not touched. When the
    /// listener is dropped its file is removed, unless there is another one in its place by then.
    ///
    /// # Errors
    ///
    /// Of the kind [`io::ErrorKind::AddrInUse`] if there is something that is in use; whatever else
    /// keeps the socket from being made.
    pub fn bind_unix(path: impl AsRef<Path>) -> io::Result<Self> {
        // Wherever the process goes until it is removed.
        let path = std::path::absolute(path)?;
        let bound = match UnixListener::bind(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(&path) => {
                fs::remove_file(&path)?;
                UnixListener::bind(&path)
            }
            bound => bound,
        }?;
        Ok(Self {
            _name: Some(Name::of(path)?),
            ..Self::new(bound)?
        })
    }

    /// Listens on a port of the sockets between a virtual machine and its host (vsock).
    ///
    /// `cid` is one of this machine's own numbers: 1 is for programs of the machine itself, where
    /// the system has a module for that, and 2 for the virtual machines of a host. With `None` it
    /// is all that there are (`VMADDR_CID_ANY`), so that a host serves every virtual machine. Ports
    /// are numbers of 32 bits, of which those below 1024 are for the privileged.
    ///
    /// # Errors
    ///
    /// Of the kind [`io::ErrorKind::InvalidInput`] if the port is 0 or `u32::MAX`, which no URI can
    /// name; [`io::ErrorKind::AddrInUse`] if somebody listens on it;
    /// [`io::ErrorKind::AddrNotAvailable`] if the machine has no such number; and whatever else
    /// keeps the socket from being made, such as a system that knows none of this kind.
    pub fn bind_vsock(cid: Option<u32>, port: u32) -> io::Result<Self> {
        if matches!(port, 0 | ANY) {
            let error = format!("vsock has no port {port} that could be connected to");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let address = vsock::address(cid.unwrap_or(ANY), port)?;
        let socket = socket2::Socket::new(address.domain(), Type::STREAM, None)?;
        socket.bind(&address)?;
        socket.listen(BACKLOG)?;
        Self::new(socket)
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
    /// When one of them is no listening socket of TCP, of the file system, or of vsock.
    pub fn inherited() -> io::Result<Vec<Self>> {
        let mut inherited = listenfd::ListenFd::from_env();
        let mut listeners = Vec::with_capacity(inherited.len());
        for at in 0..inherited.len() {
            // One of another kind stays where it is.
            let fd = inherited
                .take_unix_listener(at)
                .map(|unix| unix.map(OwnedFd::from))
                .or_else(|_| vsock::inherited(&mut inherited, at))
                .or_else(|_| {
                    let tcp = inherited.take_tcp_listener(at);
                    tcp.map(|tcp| tcp.map(OwnedFd::from))
                })?;
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
        let (socket, address) = self.socket.accept()?;
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
            vsock::peer(&address).unwrap_or(Peer::Unix)
        };
        let socket = Socket::new(OwnedFd::from(socket))?.nonblocking()?;
        Ok((socket, peer))
    }
}

/// A file that is removed in the end.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Name {
    fn of(path: PathBuf) -> io::Result<Self> {
        let identity = identity(&path)?;
        Ok(Self { path, identity })
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Nobody is left who could be told.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Whether it is a socket to which nobody listens.
fn is_stale(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_nobody_listens_to_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        // The standard library's leaves its file behind.
        drop(UnixListener::bind(&path).unwrap());
        let first = Listener::bind_unix(&path).unwrap();
        let error = Listener::bind_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        drop(first);
        fs::write(&path, "no socket").unwrap();
        let error = Listener::bind_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"no socket");
    }

    #[test]
    fn a_listener_removes_its_own_file_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(Listener::bind_unix(&path).unwrap());
        assert!(!path.exists());
        let first = Listener::bind_unix(&path).unwrap();
        fs::rename(&path, directory.path().join("elsewhere")).unwrap();
        let second = Listener::bind_unix(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_vsock_port_that_no_uri_can_name_is_refused() {
        for port in [0, u32::MAX] {
            let error = Listener::bind_vsock(None, port).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&port.to_string()), "{error}");
        }
    }
}
