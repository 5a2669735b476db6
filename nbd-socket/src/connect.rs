//! Connecting, for drivers that wait and for drivers that do not.

use crate::{Socket, vsock};
use nbd_proto::uri::Address;
use rustix::net::sockopt;
use socket2::{Domain, SockAddr, Type};
use std::{
    ffi::OsStr,
    io,
    net::{SocketAddr, ToSocketAddrs},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    thread,
    time::{Duration, Instant},
};

/// How long to wait for room in the queue of a listening Unix socket. The system does not tell when
/// there is some.
const RETRY: Duration = Duration::from_millis(10);

/// How a driver waits while it connects.
pub trait Reactor: Sync {
    /// A socket as the driver uses it.
    type Socket: AsFd + Send + Sync;

    /// Looks up the addresses of a host.
    ///
    /// # Errors
    ///
    /// When it has none.
    fn resolve(
        &self,
        host: &str,
        port: u16,
    ) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;

    /// Takes over a socket, which is a non-blocking one.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    fn register(&self, socket: Socket) -> io::Result<Self::Socket>;

    /// Waits until a socket can be written to, or is broken.
    ///
    /// # Errors
    ///
    /// When a deadline of the driver's has passed.
    fn writable(&self, socket: &Self::Socket) -> impl Future<Output = io::Result<()>> + Send;

    /// Waits for `time`.
    ///
    /// # Errors
    ///
    /// Like [`writable`](Reactor::writable).
    fn pause(&self, time: Duration) -> impl Future<Output = io::Result<()>> + Send;
}

/// Connects to what an address names: to the first address of a host that answers, in the
/// resolver's order.
///
/// # Errors
///
/// When nothing answers; of several addresses, the error tells how each failed. When this system
/// has no such addresses, an error of the kind [`io::ErrorKind::Unsupported`].
///
/// # Cancel safety
///
/// A future that is dropped leaves no connection behind.
pub async fn connect<R: Reactor>(reactor: &R, address: &Address) -> io::Result<R::Socket> {
    match address {
        Address::Tcp { host, port, .. } => tcp(reactor, host.as_str(), *port).await,
        Address::Unix { path, .. } => {
            let address = SockAddr::unix(OsStr::from_bytes(path))?;
            dial(reactor, &address).await
        }
        #[cfg(target_os = "linux")]
        Address::Abstract { name, .. } => {
            let name = [b"\0", &name[..]].concat();
            let address = SockAddr::unix(OsStr::from_bytes(&name))?;
            dial(reactor, &address).await
        }
        Address::Vsock { cid, port, .. } => dial(reactor, &vsock::address(*cid, *port)?).await,
        _ => Err(unsupported()),
    }
}

pub(crate) fn unsupported() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this system has no addresses of this kind",
    )
}

async fn tcp<R: Reactor>(reactor: &R, host: &str, port: u16) -> io::Result<R::Socket> {
    let mut failures = Vec::new();
    let mut kind = io::ErrorKind::NotFound;
    for address in reactor.resolve(host, port).await? {
        match dial(reactor, &address.into()).await {
            Ok(socket) => return Ok(socket),
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

async fn dial<R: Reactor>(reactor: &R, address: &SockAddr) -> io::Result<R::Socket> {
    loop {
        let socket = socket2::Socket::new(address.domain(), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if matches!(address.domain(), Domain::IPV4 | Domain::IPV6) {
            socket.set_tcp_nodelay(true)?;
        }
        let connected = socket.connect(address);
        let socket = Socket::new(OwnedFd::from(socket))?.nonblocking()?;
        match connected {
            Ok(()) => return reactor.register(socket),
            Err(error) if in_progress(&error) => {
                let socket = reactor.register(socket)?;
                reactor.writable(&socket).await?;
                return match sockopt::socket_error(&socket)? {
                    Ok(()) => Ok(socket),
                    Err(error) => Err(error.into()),
                };
            }
            // The queue of a Unix socket is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => reactor.pause(RETRY).await?,
            Err(error) => return Err(error),
        }
    }
}

fn in_progress(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INPROGRESS | Errno::INTR)
    )
}

/// Connects by waiting, until a deadline if there is one. Its futures never pend.
#[derive(Clone, Copy, Debug)]
pub struct Waiting(pub Option<Instant>);

impl Reactor for Waiting {
    type Socket = Socket;

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((host, port).to_socket_addrs()?.collect())
    }

    fn register(&self, socket: Socket) -> io::Result<Socket> {
        Ok(socket)
    }

    async fn writable(&self, socket: &Socket) -> io::Result<()> {
        socket.wait(false, true, self.0)
    }

    async fn pause(&self, time: Duration) -> io::Result<()> {
        if self.0.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(time);
        Ok(())
    }
}
