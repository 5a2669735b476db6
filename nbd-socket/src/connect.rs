//! Connecting, for drivers that wait and for drivers that do not.
//!
//! The addresses of a host are tried side by side, as RFC 8305 describes it: the next attempt begins
//! when the last one has failed or is silent for a while, and the first one that succeeds ends the
//! others.

mod race;
mod wait;

pub use race::Unreachable;
pub use wait::Awaited;

use crate::{Family, Lookup, Socket, socket::make_room, vsock};
use nbd_io::client::DialOptions;
use nbd_proto::uri::Address;
use rustix::net::sockopt;
use socket2::{Domain, SockAddr, TcpKeepalive, Type};
use std::{
    ffi::OsStr,
    io,
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    time::{Duration, Instant},
};

/// Interval between two attempts while the queue of a listening Unix socket is full. The system
/// does not report when it has room.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A driver's way to wait while it connects.
pub trait Reactor: Sync {
    /// A socket as the driver uses it.
    type Socket: AsFd + Send + Sync;

    /// Takes over a socket, which is a non-blocking one.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    fn register(&self, socket: Socket) -> io::Result<Self::Socket>;

    /// The driver's clock, by which all deadlines of connecting are kept.
    fn clock(&self) -> Instant {
        Instant::now()
    }

    /// Waits until something has happened or this driver's clock shows `until`. It may end earlier,
    /// for no reason.
    ///
    /// # Errors
    ///
    /// When the driver cannot wait.
    fn wait(
        &self,
        what: Awaited<'_, Self::Socket>,
        until: Option<Instant>,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// Connects to an address. All addresses of a host are tried side by side, those of IPv6 and IPv4
/// by turns, and the first one that answers is used.
///
/// # Errors
///
/// When nothing answers in the time that `options` give for all of it, looking up the host included.
/// Of a host that has several addresses the cause of an error is [`Unreachable`]. When this system
/// has no such addresses, an error of the kind [`io::ErrorKind::Unsupported`].
///
/// # Cancel safety
///
/// A future that is dropped leaves no connection behind. The lookup of a host ends by itself.
pub async fn connect<R: Reactor>(
    reactor: &R,
    address: &Address,
    options: &DialOptions,
) -> io::Result<R::Socket> {
    let start = reactor.clock();
    let dialer = Dialer {
        reactor,
        options,
        deadline: options.timeout.and_then(|time| start.checked_add(time)),
    };
    match address {
        Address::Tcp { host, port, .. } => match host.as_str().parse::<IpAddr>() {
            Ok(ip) => dialer.one(&SocketAddr::new(ip, *port).into()).await,
            Err(_) => {
                let addresses = dialer.resolve(host.as_str(), *port).await?;
                dialer.race(addresses).await
            }
        },
        Address::Unix { path, .. } => {
            let address = SockAddr::unix(OsStr::from_bytes(path))?;
            dialer.one(&address).await
        }
        #[cfg(target_os = "linux")]
        Address::Abstract { name, .. } => {
            let name = [b"\0", &name[..]].concat();
            let address = SockAddr::unix(OsStr::from_bytes(&name))?;
            dialer.one(&address).await
        }
        Address::Vsock { cid, port, .. } => dialer.one(&vsock::address(*cid, *port)?).await,
        _ => Err(unsupported()),
    }
}

pub(crate) fn unsupported() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this system has no addresses of this kind",
    )
}

/// The part that all attempts share.
struct Dialer<'a, R> {
    reactor: &'a R,
    options: &'a DialOptions,
    deadline: Option<Instant>,
}

impl<R: Reactor> Dialer<'_, R> {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let lookup = Lookup::new(host, port)?;
        loop {
            if let Some(result) = lookup.result() {
                return result;
            }
            if !self.wait(Awaited::Lookup(&lookup), None).await? {
                let text = format!("looking up {host} timed out: its name server does not answer");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
    }

    /// Connects to the only address that there is.
    async fn one(&self, address: &SockAddr) -> io::Result<R::Socket> {
        let attempt = loop {
            match self.attempt(address) {
                // The queue of the listener is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && address.is_unix() => {
                    let until = self.reactor.clock().checked_add(RETRY_INTERVAL);
                    if !self.wait(Awaited::Writable(&[]), until).await? {
                        return Err(no_answer());
                    }
                }
                attempt => break attempt?,
            }
        };
        let socket = match attempt {
            Attempt::Connected(socket) => return Ok(socket),
            Attempt::Begun(socket) => socket,
        };
        loop {
            if let Some(outcome) = outcome(&socket)? {
                return outcome.map(|()| socket);
            }
            if !self.wait(Awaited::Writable(&[&socket]), None).await? {
                return Err(no_answer());
            }
        }
    }

    /// Begins to connect a socket.
    fn attempt(&self, address: &SockAddr) -> io::Result<Attempt<R::Socket>> {
        let socket = new_socket(address.domain())?;
        if matches!(address.domain(), Domain::IPV4 | Domain::IPV6) {
            socket.set_tcp_nodelay(true)?;
            watch(&socket, self.options);
        } else if address.is_unix() {
            make_room(&socket);
        }
        let connected = match socket.connect(address) {
            Err(error) if !in_progress(&error) => return Err(error),
            connected => connected.is_ok(),
        };
        let socket = Socket::connecting(OwnedFd::from(socket), Family::of(address))?;
        let socket = self.reactor.register(socket)?;
        Ok(if connected {
            Attempt::Connected(socket)
        } else {
            Attempt::Begun(socket)
        })
    }

    /// Waits until something has happened, or until a time. Whether the deadline had not passed
    /// before.
    async fn wait(&self, what: Awaited<'_, R::Socket>, until: Option<Instant>) -> io::Result<bool> {
        if self.deadline.is_some_and(|at| at <= self.reactor.clock()) {
            return Ok(false);
        }
        let until = until.into_iter().chain(self.deadline).min();
        self.reactor.wait(what, until).await?;
        Ok(true)
    }
}

/// A socket that is being connected.
enum Attempt<S> {
    /// It is already, as those of a listener on this machine often are.
    Connected(S),
    Begun(S),
}

/// Makes a socket that does not wait, by one call where the system has that.
fn new_socket(domain: Domain) -> io::Result<socket2::Socket> {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    return socket2::Socket::new(domain, Type::STREAM.nonblocking(), None);
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    {
        let socket = socket2::Socket::new(domain, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Has the system notice that the other side is gone, as far as it can.
fn watch(socket: &socket2::Socket, options: &DialOptions) {
    // An option that cannot be set costs time and nothing else, as on systems that lack it.
    if let Some(idle) = options.tcp_keepalive {
        let _ = socket.set_tcp_keepalive(&keepalive(idle));
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if options.tcp_user_timeout.is_some() {
        let _ = socket.set_tcp_user_timeout(options.tcp_user_timeout);
    }
}

/// Asks after this time, and then so often that it knows after three times as long.
fn keepalive(idle: Duration) -> TcpKeepalive {
    // The system counts whole seconds.
    let idle = idle.max(Duration::from_secs(1));
    let keepalive = TcpKeepalive::new().with_time(idle);
    #[cfg(any(
        target_os = "linux",
        target_os = "android",
        target_os = "freebsd",
        target_vendor = "apple"
    ))]
    let keepalive = keepalive
        .with_interval((idle / 3).max(Duration::from_secs(1)))
        .with_retries(6);
    keepalive
}

/// The result of an attempt, if it has ended.
fn outcome(socket: &impl AsFd) -> io::Result<Option<io::Result<()>>> {
    if !wait::any_writable(&[socket], Some(Instant::now()))? {
        return Ok(None);
    }
    Ok(Some(sockopt::socket_error(socket)?.map_err(Into::into)))
}

fn in_progress(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INPROGRESS | Errno::INTR)
    )
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "timed out without an answer")
}

/// Connects by waiting. Its futures never pend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting;

impl Reactor for Waiting {
    type Socket = Socket;

    fn register(&self, socket: Socket) -> io::Result<Socket> {
        Ok(socket)
    }

    async fn wait(&self, what: Awaited<'_, Socket>, until: Option<Instant>) -> io::Result<()> {
        what.wait(until).map(drop)
    }
}

#[cfg(test)]
mod tests;
