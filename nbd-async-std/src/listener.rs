//! Listening sockets.

use crate::Socket;
use async_io::Async;
use nbd_io::server::Peer;
use std::{
    io,
    task::{Context, Poll, ready},
};

/// A listening socket of any family, for [`Server::serve`](crate::Server::serve), which also takes a
/// `Vec` of them.
///
/// ```
/// use nbd_async_std::Listener;
/// use std::net::TcpListener;
///
/// # let directory = std::env::temp_dir().join(format!("nbd-async-std-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let path = directory.join("nbd.sock");
/// # async_std::task::block_on(async {
/// let mut listeners = Listener::bind_tcp("localhost:0")?;
/// println!("listens at {}", listeners[0].local_addr()?);
/// listeners.push(Listener::bind_unix(path)?);
/// listeners.push(Listener::from_std(TcpListener::bind("127.0.0.1:0")?)?);
/// // For virtual machines, where the system has vsock:
/// listeners.extend(Listener::bind_vsock(None, 10809));
/// // Sockets that systemd has opened for this process:
/// listeners.extend(Listener::inherited()?);
/// # drop(listeners);
/// # std::fs::remove_dir(directory)?;
/// # Ok::<(), std::io::Error>(()) })?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Listener(Source);

#[derive(Debug)]
enum Source {
    Listening(Async<nbd_socket::Listener>),
    /// A client that is there already, until it is taken.
    Client(Option<(Socket, Peer)>),
}

impl Listener {
    /// Takes over a listening socket of [`nbd_socket`], or the client that the process was
    /// [started with](Self::inherited).
    ///
    /// ```no_run
    /// use nbd_async_std::{Listener, nbd_socket};
    ///
    /// let listener = Listener::new(nbd_socket::Listener::bind_unix("/run/nbd.sock")?)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn new(listener: nbd_socket::Listener) -> io::Result<Self> {
        Ok(Self(match listener.into_connected()? {
            Ok((socket, peer)) => Source::Client(Some((Socket::new(socket)?, peer))),
            Err(listener) => Source::Listening(Async::new_nonblocking(listener)?),
        }))
    }

    fn socket(&self) -> Option<&nbd_socket::Listener> {
        match &self.0 {
            Source::Listening(listener) => Some(listener.get_ref()),
            Source::Client(_) => None,
        }
    }
}

nbd_socket::driver_listener! {
    examples: "# use nbd_async_std::Listener; fn example() -> std::io::Result<()> {", "# Ok(()) }",
}

impl nbd_io::server::Listener for Listener {
    type Stream = Socket;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        let listener = match &mut self.0 {
            Source::Listening(listener) => listener,
            Source::Client(client) => {
                return client
                    .take()
                    .map_or(Poll::Pending, |client| Poll::Ready(Ok(client)));
            }
        };
        loop {
            match listener.get_ref().accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => {
                    let (socket, peer) = accepted?;
                    return Poll::Ready(Socket::new(socket).map(|socket| (socket, peer)));
                }
            }
            ready!(listener.poll_readable(cx))?;
        }
    }

    fn is_exhausted(&self) -> bool {
        matches!(self.0, Source::Client(None))
    }
}
