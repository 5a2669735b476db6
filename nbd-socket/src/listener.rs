//! Listening sockets.

use crate::{
    Family, Socket,
    socket::{make_room, peer},
    vsock,
};
use nbd_io::server::Peer;
use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{SocketType, sockopt},
};
use socket2::{SockAddr, TcpKeepalive, Type};
use std::{
    fs, io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// A client that has sent nothing for this time is probed by TCP keepalive, at this interval and so
/// many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// `VMADDR_CID_ANY`, and `VMADDR_PORT_ANY` as well.
const ANY: u32 = u32::MAX;

/// Limit of connections that wait to be accepted, as with the listeners of the standard library.
const BACKLOG: i32 = 4096;

/// A listening stream socket that does not wait, for an event loop; or the only client that there
/// will be, if a process was [started with that](Self::inherited).
#[derive(Debug)]
pub struct Listener {
    socket: socket2::Socket,
    is_connected: bool,
    /// The name in the file system that was made for it.
    _name: Option<Name>,
}

impl Listener {
    /// Takes over a listening socket, such as one of the standard library's, which becomes a
    /// non-blocking one.
    ///
    /// # Errors
    ///
    /// Of the kind [`io::ErrorKind::InvalidInput`] if it does not listen; when its mode cannot be
    /// changed.
    pub fn new(listener: impl Into<OwnedFd>) -> io::Result<Self> {
        let listener = socket2::Socket::from(listener.into());
        check_listens(&listener)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: listener,
            is_connected: false,
            _name: None,
        })
    }

    /// The client, and who it is, if the process was [started](Self::inherited) to serve just that one;
    /// else the listener. The socket may wait or not; see [`accept`](Self::accept).
    ///
    /// # Errors
    ///
    /// When the client is gone.
    pub fn into_connected(self) -> io::Result<Result<(Socket, Peer), Self>> {
        if !self.is_connected {
            return Ok(Err(self));
        }
        let address = self.socket.peer_addr()?;
        let peer = introduce(&self.socket, &address);
        Ok(Ok((Socket::new(OwnedFd::from(self.socket))?, peer)))
    }

    /// Listens on a TCP port, such as `"localhost:10809"` or `("::", 10809)`, at every address that
    /// the host stands for: `localhost` is most often one of IPv6 and one of IPv4. With port 0 the
    /// system chooses one, the same for all of them; see [`local_addr`](Self::local_addr).
    ///
    /// # Errors
    ///
    /// When the host has no addresses, or the port is in use at one of them. An address that this
    /// machine does not have is left out, if there is another one.
    pub fn bind_tcp(address: impl ToSocketAddrs) -> io::Result<Vec<Self>> {
        let mut addresses: Vec<_> = address.to_socket_addrs()?.collect();
        addresses.dedup();
        // A port that is free at one address may be in use at another one.
        let is_any = addresses.iter().all(|address| address.port() == 0);
        let attempts = if is_any { 16 } else { 1 };
        let mut bound = bind_all(&addresses);
        for _ in 1..attempts {
            match &bound {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                _ => break,
            }
            bound = bind_all(&addresses);
        }
        bound
    }

    /// The address that a TCP listener listens at.
    ///
    /// # Errors
    ///
    /// Of the kind [`io::ErrorKind::Unsupported`] if it is of another family.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = self.socket.local_addr()?;
        address.as_socket().ok_or_else(|| {
            let error = "expected a listener for TCP, and this one is of another family";
            io::Error::new(io::ErrorKind::Unsupported, error)
        })
    }

    /// Listens on a Unix socket, in place of one that a server has left behind.
    ///
    /// A socket that still answers, and a file that is no socket, are not touched. When the
    /// listener is dropped its file is removed, unless there is another one in its place by then.
    ///
    /// # Errors
    ///
    /// Of the kind [`io::ErrorKind::AddrInUse`] if there is something that is in use; the system's
    /// error if the socket cannot be made.
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
    /// name; [`io::ErrorKind::AddrInUse`] if another socket listens on it;
    /// [`io::ErrorKind::AddrNotAvailable`] if the machine has no such number; and the system's
    /// error if the socket cannot be made, as on a system that knows none of this kind.
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
    /// started so. With `Accept=yes`, `systemd` hands over the socket of one client instead: a server
    /// serves it, and ends with it.
    ///
    /// They are given away once; later there are none. The environment stays as it is: the variables
    /// name this process, so that its children do not take the sockets for their own. Nor do they
    /// inherit them.
    ///
    /// # Errors
    ///
    /// When the variables make no sense, or one of the sockets is not a stream socket that listens or
    /// is connected. All of them stay open then.
    pub fn inherited() -> io::Result<Vec<Self>> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        // Each descriptor has one owner.
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        let inherited = sd_listen_fds::get().map_err(|error| {
            let error = format!("cannot tell which sockets were inherited: {error}");
            io::Error::new(io::ErrorKind::InvalidInput, error)
        })?;
        let inherited: Vec<_> = inherited.into_iter().map(|(_, fd)| fd.into_std()).collect();
        let checked = inherited.iter().try_for_each(check_inherited);
        if let Err(error) = checked {
            // A descriptor that does not fit the variables may belong to other code.
            for fd in inherited {
                let _ = fd.into_raw_fd();
            }
            return Err(error);
        }
        let listener = |fd: OwnedFd| {
            if is_connected(&fd) {
                return Ok(Self {
                    socket: fd.into(),
                    is_connected: true,
                    _name: None,
                });
            }
            Self::new(fd)
        };
        inherited.into_iter().map(listener).collect()
    }

    /// The next connection, and who is at its other end. The socket is to be made a
    /// [blocking](Socket::blocking) or a [non-blocking](Socket::nonblocking) one; which it is before
    /// depends on the system.
    ///
    /// Over TCP, `TCP_NODELAY` is set, and a client that says nothing for a minute is asked whether
    /// it is still there (`SO_KEEPALIVE`).
    ///
    /// # Errors
    ///
    /// The system's error, unaltered; of the kind [`io::ErrorKind::WouldBlock`] if there is no
    /// connection.
    pub fn accept(&self) -> io::Result<(Socket, Peer)> {
        let (socket, address) = self.socket.accept()?;
        let peer = introduce(&socket, &address);
        let socket = Socket::accepted(OwnedFd::from(socket), Family::of(&address));
        Ok((socket, peer))
    }
}

/// Prepares the socket of a client, and says who it is.
fn introduce(socket: &socket2::Socket, address: &SockAddr) -> Peer {
    let peer = peer(address);
    let Peer::Tcp(_) = peer else {
        if address.is_unix() {
            make_room(socket);
        }
        return peer;
    };
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    // Some systems refuse these when the client is gone, which is no failure of the listener.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    peer
}

/// Listens at all addresses; where the system chooses the port, at the same one.
fn bind_all(addresses: &[SocketAddr]) -> io::Result<Vec<Listener>> {
    let mut listeners: Vec<Listener> = Vec::with_capacity(addresses.len());
    let mut missing = None;
    for address in addresses {
        let mut address = *address;
        if let Some(first) = listeners.first().filter(|_| address.port() == 0) {
            address.set_port(first.local_addr()?.port());
        }
        match TcpListener::bind(address) {
            Ok(listener) => listeners.push(Listener::new(listener)?),
            Err(error) if is_missing(&error) => missing = Some((address, error)),
            Err(error) => return Err(at(address, &error)),
        }
    }
    match missing {
        Some((address, error)) if listeners.is_empty() => Err(at(address, &error)),
        None if listeners.is_empty() => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "expected the host to have an address, and it has none",
        )),
        _ => Ok(listeners),
    }
}

/// Whether this machine has no such address, or none of its family.
fn is_missing(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    error.kind() == io::ErrorKind::AddrNotAvailable || errno == Some(rustix::io::Errno::AFNOSUPPORT)
}

fn at(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen at {address}: {error}"))
}

/// Refuses a descriptor that is no stream socket, or one that neither listens nor is connected, and
/// has no other process inherit it.
fn check_inherited(fd: &OwnedFd) -> io::Result<()> {
    let of = |what: &str| {
        let error = format!("descriptor {}, which was inherited, {what}", fd.as_raw_fd());
        io::Error::new(io::ErrorKind::InvalidInput, error)
    };
    let kind = sockopt::socket_type(fd);
    match kind.map_err(|error| of(&format!("is no socket: {error}")))? {
        SocketType::STREAM => {}
        _ => return Err(of("is a socket of another kind than a stream")),
    }
    if !is_connected(fd) {
        check_listens(fd).map_err(|error| of(&format!("does not listen: {error}")))?;
    }
    Ok(fcntl_setfd(fd, FdFlags::CLOEXEC)?)
}

/// Refuses a socket that would only say so when it is to accept a connection.
fn check_listens(socket: &impl AsFd) -> io::Result<()> {
    // Apple's systems cannot be asked.
    #[cfg(target_vendor = "apple")]
    let _ = socket;
    #[cfg(not(target_vendor = "apple"))]
    if !sockopt::socket_acceptconn(socket)? {
        let error = if is_connected(socket) {
            "expected a socket that listens, and this one is connected to a client"
        } else {
            "expected a socket that listens, and this one does not"
        };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    Ok(())
}

fn is_connected(socket: &impl AsFd) -> bool {
    rustix::net::getpeername(socket).is_ok_and(|peer| peer.is_some())
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
            // No caller is left to report it to.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Whether it is a socket on which no process listens.
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
    use std::net::TcpStream;

    #[test]
    fn only_a_socket_without_a_listener_is_replaced() {
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

    #[cfg(not(target_vendor = "apple"))]
    #[test]
    fn a_socket_that_does_not_listen_is_refused_with_words() {
        let (connected, _other) = UnixStream::pair().unwrap();
        let error = Listener::new(connected).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(
            error.to_string().contains("connected to a client"),
            "{error}"
        );
        let socket = socket2::Socket::new(socket2::Domain::IPV4, Type::STREAM, None).unwrap();
        let error = Listener::new(socket).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("does not"), "{error}");
    }

    #[test]
    fn every_address_of_the_local_host_listens_at_one_port() {
        let listeners = Listener::bind_tcp("localhost:0").unwrap();
        let addresses: Vec<_> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap())
            .collect();
        let port = addresses[0].port();
        assert!(port != 0 && addresses.iter().all(|address| address.port() == port));
        let known: Vec<_> = ("localhost", port).to_socket_addrs().unwrap().collect();
        for address in &addresses {
            assert!(known.contains(address));
            TcpStream::connect(address).unwrap();
        }
        // Every one of them that the machine has.
        for missing in known.iter().filter(|known| !addresses.contains(known)) {
            assert!(is_missing(
                &TcpListener::bind((missing.ip(), 0)).unwrap_err()
            ));
        }
        let error = Listener::bind_tcp(("localhost", port)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&port.to_string()), "{error}");
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
