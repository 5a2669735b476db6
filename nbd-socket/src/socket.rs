//! A socket of any family.

use crate::child::Child;
use crate::vsock;
use nbd_io::{client::ServerProcess, server::Peer};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, recvmsg,
        send, sendmsg, shutdown, sockopt,
    },
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    process::Command,
    time::{Duration, Instant},
};

/// No signal is raised where the peer has closed; on Apple's systems that is up to the socket.
#[cfg(not(target_vendor = "apple"))]
const QUIETLY: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const QUIETLY: SendFlags = SendFlags::empty();

/// Room for bytes that were sent over a Unix socket and not received. Linux doubles it for its own
/// overhead. By default it has less than a payload of 256 KiB takes, so that the sender of one
/// waits in the middle of it. TCP adapts its own.
const UNIX_ROOM: usize = 256 << 10;

/// A connected stream socket.
///
/// If its peer is a child process, dropping it ends that process.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Ended when the socket is dropped.
    child: Option<Child>,
    /// Its mode, as far as that is known.
    nonblocking: Option<bool>,
    /// `None` if the system has to be asked.
    family: Option<Family>,
}

/// The families of sockets, as far as an event loop has to know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// IPv4 and IPv6.
    Ip,
    /// Unix sockets.
    Unix,
    /// Any other, such as vsock.
    Other,
}

impl Family {
    pub(crate) fn of(address: &socket2::SockAddr) -> Self {
        if address.is_unix() {
            Self::Unix
        } else if address.is_ipv4() || address.is_ipv6() {
            Self::Ip
        } else {
            Self::Other
        }
    }

    /// Whether a call that moves fewer bytes than it could has moved all that can be moved now, so
    /// that there is no need to try again before the system reports that there is more. True of TCP
    /// and of Unix sockets, but not of every kind of vsock.
    #[must_use]
    pub const fn moves_all(self) -> bool {
        matches!(self, Self::Ip | Self::Unix)
    }
}

impl Socket {
    /// Takes over a connected stream socket, which becomes a blocking one. For TCP, `TCP_NODELAY`
    /// should be set.
    ///
    /// # Errors
    ///
    /// When its mode cannot be changed.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Self::with_child(fd, None).blocking()
    }

    /// Takes over a connected stream socket of the standard library's, or any other. Over TCP,
    /// `TCP_NODELAY` is set.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn from_std(stream: impl Into<OwnedFd>) -> io::Result<Self> {
        let socket = Self::new(stream.into())?;
        if let Peer::Tcp(_) = socket.peer() {
            sockopt::set_tcp_nodelay(&socket.fd, true)?;
        }
        Ok(socket)
    }

    /// The peer at the other end. A process at the other end of a pair of sockets is
    /// [`Peer::Unix`], too.
    #[must_use]
    pub fn peer(&self) -> Peer {
        let address = socket2::SockRef::from(&self.fd).peer_addr();
        address.map_or(Peer::Other, |address| peer(&address))
    }

    /// Takes over a socket that has just been accepted, of whichever mode the system makes it.
    pub(crate) fn accepted(fd: OwnedFd, family: Family) -> Self {
        // Elsewhere it has the mode of the listening socket.
        let is_known = cfg!(any(target_os = "linux", target_os = "android"));
        Self {
            nonblocking: is_known.then_some(false),
            family: Some(family),
            ..Self::with_child(fd, None)
        }
    }

    /// Takes over a socket that does not wait and is being connected.
    pub(crate) fn connecting(fd: OwnedFd, family: Family) -> io::Result<Self> {
        // There is more to be set than the mode on Apple's systems.
        let is_ready = !cfg!(target_vendor = "apple");
        let socket = Self {
            nonblocking: is_ready.then_some(true),
            family: Some(family),
            ..Self::with_child(fd, None)
        };
        socket.nonblocking()
    }

    const fn with_child(fd: OwnedFd, child: Option<Child>) -> Self {
        Self {
            fd,
            child,
            nonblocking: None,
            family: None,
        }
    }

    /// Starts a server that serves one connection on its standard input and output. The server is
    /// ended by the end of the connection, and killed if it does not end within 5 s.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn spawn(command: Command) -> io::Result<Self> {
        let (fd, child) = Child::spawn(command)?;
        Self::with_child(fd, Some(child)).blocking()
    }

    /// Starts a server that takes a listening socket from its parent by the environment variables
    /// `LISTEN_FDS` and `LISTEN_PID`, and connects to it. When the socket is dropped, the server is
    /// asked to end by a signal, and killed if it does not within 5 s.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn activate(command: &Command) -> io::Result<Self> {
        let (fd, child) = Child::activate(command)?;
        Self::with_child(fd, Some(child)).blocking()
    }

    /// Starts a server of either kind.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn launch(server: ServerProcess<'_>) -> io::Result<Self> {
        match server {
            ServerProcess::Inetd(command) => Self::spawn(command),
            ServerProcess::Activated(command) => Self::activate(command),
        }
    }

    /// Makes it a blocking socket. Dropping it waits for its child process to end.
    ///
    /// # Errors
    ///
    /// When its mode cannot be changed.
    pub fn blocking(self) -> io::Result<Self> {
        self.with_mode(false)
    }

    /// Makes it a non-blocking socket, for an event loop. Dropping it does not wait for its
    /// child process to end; a thread does.
    ///
    /// # Errors
    ///
    /// When its mode cannot be changed.
    pub fn nonblocking(self) -> io::Result<Self> {
        self.with_mode(true)
    }

    fn with_mode(mut self, nonblocking: bool) -> io::Result<Self> {
        if self.nonblocking != Some(nonblocking) {
            rustix::io::ioctl_fionbio(&self.fd, nonblocking)?;
            #[cfg(target_vendor = "apple")]
            socket2::SockRef::from(&self.fd).set_nosigpipe(true)?;
            self.nonblocking = Some(nonblocking);
        }
        if let Some(child) = &mut self.child {
            child.ends_aside = nonblocking;
        }
        Ok(self)
    }

    /// Receives into `bufs` in order. Without `block`, fails with `WouldBlock` when nothing is
    /// there; with it, when nothing came within [`set_timeouts`](Socket::set_timeouts).
    ///
    /// # Errors
    ///
    /// When the socket is broken, or nothing came in time.
    #[inline]
    pub fn recv(&self, bufs: &mut [IoSliceMut<'_>], block: bool) -> io::Result<usize> {
        let flags = if block {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        loop {
            let received = match &mut *bufs {
                [buf] => recv(&self.fd, &mut **buf, flags).map(|(n, _)| n),
                bufs if block || self.nonblocking == Some(true) => {
                    rustix::io::readv(&self.fd, bufs)
                }
                bufs => recvmsg(&self.fd, bufs, &mut RecvAncillaryBuffer::default(), flags)
                    .map(|message| message.bytes),
            };
            match received {
                Ok(n) => return Ok(n),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends from `bufs` in order. Without `block`, as much as fits without waiting; with it, all,
    /// or as much as fits within [`set_timeouts`](Socket::set_timeouts).
    ///
    /// # Errors
    ///
    /// When the socket is broken, or nothing fitted in time.
    #[inline]
    pub fn send(&self, bufs: &[IoSlice<'_>], block: bool) -> io::Result<usize> {
        let mut flags = QUIETLY;
        flags.set(SendFlags::DONTWAIT, !block);
        loop {
            let sent = match bufs {
                [buf] => send(&self.fd, buf, flags),
                bufs => sendmsg(&self.fd, bufs, &mut SendAncillaryBuffer::default(), flags),
            };
            match sent {
                Ok(sent) => return Ok(sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family.unwrap_or_else(|| {
            let address = socket2::SockRef::from(self).local_addr();
            address.map_or(Family::Other, |address| Family::of(&address))
        })
    }

    /// Whether the peer of a socket that is dropped receives all that was sent and then the end.
    ///
    /// Not with vsock: on Linux a peer that shuts down its side at the same moment gets an error in
    /// place of the end, because its `shutdown` forgets that the other side has closed.
    #[must_use]
    pub fn closes_gracefully_on_drop(&self) -> bool {
        self.family() != Family::Other
    }

    /// Waits until the socket can be read from or written to, whichever is asked for.
    ///
    /// # Errors
    ///
    /// When the deadline has passed.
    pub fn wait(&self, read: bool, write: bool, deadline: Option<Instant>) -> io::Result<()> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, read);
        events.set(PollFlags::OUT, write);
        loop {
            // A zero timeout still finds an event that has happened already.
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.fd, events)], timeout.as_ref()) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Limits the time of a blocking receive and of a blocking send. `None` is for ever.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn set_timeouts(&self, recv: Option<Duration>, send: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, recv)?;
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Send, send)?;
        Ok(())
    }

    /// Announces to the peer that no more bytes will come.
    ///
    /// # Errors
    ///
    /// When the connection is over.
    pub fn shutdown(&self) -> io::Result<()> {
        Ok(shutdown(self.fd.as_fd(), Shutdown::Write)?)
    }

    /// Ends the other direction: received bytes can still be read, and then there are no more.
    pub fn shutdown_read(&self) {
        let _ = shutdown(self.fd.as_fd(), Shutdown::Read);
    }

    /// Ends both directions, so that no thread or task waits for the socket any longer.
    pub fn close(&self) {
        let _ = shutdown(self.fd.as_fd(), Shutdown::Both);
    }
}

/// Has a Unix socket take long payloads at once.
pub(crate) fn make_room(socket: &socket2::Socket) {
    // With less room everything only takes longer.
    let _ = socket.set_send_buffer_size(UNIX_ROOM);
}

/// The peer that has an address.
pub(crate) fn peer(address: &socket2::SockAddr) -> Peer {
    match address.as_socket() {
        Some(address) => Peer::Tcp(address),
        None if address.is_unix() => Peer::Unix,
        None => vsock::peer(address).unwrap_or(Peer::Other),
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
