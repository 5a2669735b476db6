//! Sockets of every family, and the processes behind some of them.

use crate::Error;
use nbd_proto::uri::Address;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recvmsg, sendmsg,
        shutdown, sockopt,
    },
};
use std::{
    fs::DirBuilder,
    io::{self, IoSlice, IoSliceMut},
    net::{TcpStream, ToSocketAddrs},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a server that this side started may take to end before it is killed.
const CHILD_GRACE: Duration = Duration::from_secs(5);

/// A connected stream socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    /// Ended when the socket is dropped.
    _server: Option<Server>,
}

impl Socket {
    /// Takes over a socket, which becomes a blocking one.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, false)?;
        Ok(Self { fd, _server: None })
    }

    /// Connects to a server.
    pub(crate) fn connect(address: &Address, deadline: Option<Instant>) -> Result<Self, Error> {
        let to = address_name(address);
        let connected = match address {
            Address::Tcp { host, port, .. } => tcp(host.as_str(), *port, deadline),
            Address::Unix { path, .. } => {
                use std::os::unix::ffi::OsStrExt;
                socket2::SockAddr::unix(std::ffi::OsStr::from_bytes(path))
                    .and_then(|address| unix(&address, deadline))
            }
            Address::Abstract { name, .. } => abstract_socket(name, deadline)?,
            Address::Vsock { cid, port, .. } => vsock(*cid, *port),
            _ => {
                return Err(Error::Unsupported {
                    what: "this kind of address is not supported",
                });
            }
        };
        connected
            .and_then(Self::new)
            .map_err(|source| Error::Connect {
                to,
                source: Arc::new(source),
            })
    }

    /// Starts a server that serves one connection on its standard input and output.
    pub(crate) fn spawn(mut command: Command) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let output = theirs.try_clone()?;
        let child = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(output)))
            .spawn()?;
        drop(command); // which still holds the server's end
        Ok(Self {
            fd: ours.into(),
            _server: Some(Server {
                child,
                ends_by_itself: true,
            }),
        })
    }

    /// Starts a server that takes a listening socket from its parent.
    pub(crate) fn activate(command: &Command) -> io::Result<Self> {
        let directory = PrivateDirectory::new()?;
        let path = directory.0.join("socket");
        let listener = UnixListener::bind(&path)?;
        // The server expects the socket as descriptor 3 and its own number in the environment,
        // neither of which can be arranged from here without help of the shell.
        let mut shell = Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(r#"export LISTEN_FDS=1 LISTEN_PID=$$; exec "$0" "$@" 3<&0 </dev/null"#)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::from(OwnedFd::from(listener)));
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            shell.current_dir(directory);
        }
        let server = Server {
            child: shell.spawn()?,
            ends_by_itself: false,
        };
        drop(shell); // which still holds the listening socket
        let fd = OwnedFd::from(UnixStream::connect(&path)?);
        Ok(Self {
            fd,
            _server: Some(server),
        })
    }

    /// Receives into `bufs` in order. Without `block`, fails with `WouldBlock` when nothing is
    /// there; with it, when nothing came within [`set_patience`](Socket::set_patience).
    pub(crate) fn recv(&self, bufs: &mut [IoSliceMut<'_>], block: bool) -> io::Result<usize> {
        let flags = if block {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        loop {
            match recvmsg(&self.fd, bufs, &mut RecvAncillaryBuffer::default(), flags) {
                Ok(message) => return Ok(message.bytes),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends from `bufs` in order. Without `block`, as much as fits without waiting; with it, all,
    /// or what fits within [`set_patience`](Socket::set_patience).
    pub(crate) fn send(&self, bufs: &[IoSlice<'_>], block: bool) -> io::Result<usize> {
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::DONTWAIT, !block);
        loop {
            match sendmsg(&self.fd, bufs, &mut SendAncillaryBuffer::default(), flags) {
                Ok(sent) => return Ok(sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until the socket can be read from or written to, whichever is asked for.
    pub(crate) fn wait(
        &self,
        read: bool,
        write: bool,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, read);
        events.set(PollFlags::OUT, write);
        loop {
            let timeout = match deadline {
                None => None,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    Timespec::try_from(left).ok()
                }
            };
            match poll(&mut [PollFd::new(&self.fd, events)], timeout.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How long a blocking send or receive waits.
    pub(crate) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        for direction in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&self.fd, direction, patience)?;
        }
        Ok(())
    }

    pub(crate) fn shutdown(&self) -> io::Result<()> {
        Ok(shutdown(self.fd.as_fd(), Shutdown::Write)?)
    }

    /// Ends both directions, so that nobody who waits for the socket waits on.
    pub(crate) fn close(&self) {
        let _ = shutdown(self.fd.as_fd(), Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A server that this side started.
#[derive(Debug)]
struct Server {
    child: Child,
    /// It ends when its only connection is closed.
    ends_by_itself: bool,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The connection is closed by now.
        if !self.ends_by_itself {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(&self.child),
                rustix::process::Signal::TERM,
            );
        }
        let deadline = Instant::now() + CHILD_GRACE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that nobody else can look into, for as long as the value lives.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How errors name an address.
pub(crate) fn address_name(address: &Address) -> String {
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

/// Tries every address that the host has, in the resolver's order.
fn tcp(host: &str, port: u16, deadline: Option<Instant>) -> io::Result<OwnedFd> {
    let mut failures = Vec::new();
    let mut kind = io::ErrorKind::NotFound;
    for address in (host, port).to_socket_addrs()? {
        let connected = match deadline {
            None => TcpStream::connect(address),
            Some(deadline) => match deadline.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
                left => TcpStream::connect_timeout(&address, left),
            },
        };
        match connected {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream.into());
            }
            Err(error) => {
                kind = error.kind();
                failures.push(format!("{address}: {error}"));
            }
        }
    }
    if failures.is_empty() {
        failures.push("the host has no address".to_owned());
    }
    Err(io::Error::new(kind, failures.join("; ")))
}

/// Waits while the listener's queue is full, but not for ever.
fn unix(address: &socket2::SockAddr, deadline: Option<Instant>) -> io::Result<OwnedFd> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    if let Some(deadline) = deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_write_timeout(Some(left))?; // which is that of connecting, too
    }
    match socket.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(io::ErrorKind::TimedOut.into());
        }
        connected => connected?,
    }
    socket.set_write_timeout(None)?;
    Ok(socket.into())
}

#[cfg(target_os = "linux")]
fn abstract_socket(name: &[u8], deadline: Option<Instant>) -> Result<io::Result<OwnedFd>, Error> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let name = [b"\0", name].concat();
    Ok(socket2::SockAddr::unix(OsStr::from_bytes(&name))
        .and_then(|address| unix(&address, deadline)))
}

#[cfg(not(target_os = "linux"))]
fn abstract_socket(_: &[u8], _: Option<Instant>) -> Result<io::Result<OwnedFd>, Error> {
    Err(Error::Unsupported {
        what: "only Linux has abstract Unix sockets",
    })
}

#[cfg(target_os = "linux")]
fn vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    use socket2::{Domain, SockAddr, Socket, Type};
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.connect(&SockAddr::vsock(cid, port))?;
    Ok(socket.into())
}

#[cfg(not(target_os = "linux"))]
fn vsock(_: u32, _: u32) -> io::Result<OwnedFd> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "only Linux has vsock here",
    ))
}
