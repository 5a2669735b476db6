//! Streams that a program brings.

use crate::{
    Blocking, Client, ConnectOptions, Error, Server,
    host::{self, Connection},
    server::{CloseReason, Peer},
    stream,
};
use nbd_io::transport::block_on_ready;
use nbd_socket::Socket;
use private::Brought;
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
};

/// A stream that a client can [connect over](ConnectOptions::connect_over) and a server can
/// [serve over](Server::serve_over): a socket of the standard library or of
/// [`nbd_socket`](crate::nbd_socket), [`Stdio`](crate::Stdio), or any other in a [`Stream`].
pub trait IntoConnection: private::Bring {}

pub(crate) mod private {
    use crate::stream::ReadWrite;
    use nbd_socket::Socket;
    use std::{fmt, io};

    pub trait Bring: Send {
        fn bring(self) -> io::Result<Brought>;
    }

    pub enum Brought {
        Socket(Socket),
        Any(Box<dyn ReadWrite>),
    }

    impl fmt::Debug for Brought {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Socket(socket) => socket.fmt(f),
                Self::Any(_) => f.write_str("a stream"),
            }
        }
    }
}

impl IntoConnection for Socket {}

impl private::Bring for Socket {
    fn bring(self) -> io::Result<Brought> {
        Ok(Brought::Socket(self))
    }
}

impl IntoConnection for TcpStream {}

impl private::Bring for TcpStream {
    fn bring(self) -> io::Result<Brought> {
        Socket::from_std(self).map(Brought::Socket)
    }
}

impl IntoConnection for UnixStream {}

impl private::Bring for UnixStream {
    fn bring(self) -> io::Result<Brought> {
        Socket::from_std(self).map(Brought::Socket)
    }
}

/// Any stream, such as a pipe in memory or a tunnel, for
/// [`connect_over`](crate::ConnectOptions::connect_over) and
/// [`serve_over`](crate::Server::serve_over).
///
/// It is used by one thread at a time with one request in flight, because nothing is known of it but
/// that it reads and writes. It has to be blocking. Deadlines cannot be kept on it, TLS cannot be
/// started, and a server that stops cannot wake it while it waits; all that is the stream's own
/// business.
#[derive(Debug)]
pub struct Stream<S>(S);

impl<S: Read + Write + Send + 'static> Stream<S> {
    /// Takes over a stream.
    pub const fn new(stream: S) -> Self {
        Self(stream)
    }

    /// Gives the stream back.
    pub fn into_inner(self) -> S {
        self.0
    }
}

impl<S: Read + Write + Send + 'static> IntoConnection for Stream<S> {}

impl<S: Read + Write + Send + 'static> private::Bring for Stream<S> {
    fn bring(self) -> io::Result<Brought> {
        Ok(Brought::Any(Box::new(self.0)))
    }
}

impl ConnectOptions {
    /// Enters the export over a stream that the program brings. `host` is the name that a certificate
    /// is checked against unless `ClientTls` has another one.
    ///
    /// ```no_run
    /// use nbd_blocking::ConnectOptions;
    /// use std::net::TcpStream;
    ///
    /// let socket = TcpStream::connect("localhost:10809")?;
    /// let disk = ConnectOptions::new().connect_over(socket, Some("localhost"))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the export cannot be entered; or with [`reconnect`](Self::reconnect) or more than one of
    /// [`connections`](Self::connections), because there is no address to make another one to.
    pub fn connect_over(
        &self,
        stream: impl IntoConnection,
        host: Option<&str>,
    ) -> Result<Client, Error> {
        let mut options = self.as_ref().clone();
        let stream = stream.bring().and_then(|brought| match brought {
            Brought::Socket(socket) => Ok(stream::Stream::Socket(socket.blocking()?)),
            Brought::Any(any) => Ok(stream::Stream::Any(any.into())),
        });
        if let Ok(stream::Stream::Any(_)) = &stream {
            options = options.one_in_flight();
        }
        let stream = stream.and_then(|stream| Blocking::default().negotiating(stream));
        block_on_ready(options.enter_over(stream, host))
    }
}

impl Server {
    /// Serves one client over a stream that the program brings, until that client is gone.
    ///
    /// ```
    /// use nbd_blocking::{ConnectOptions, Server, exports::Memory};
    /// use std::{os::unix::net::UnixStream, sync::Arc, thread};
    ///
    /// let server = Server::single(Arc::new(Memory::new(1 << 20)));
    /// let (ours, theirs) = UnixStream::pair()?;
    /// let serving = thread::spawn(move || server.serve_over(theirs));
    /// ConnectOptions::new().connect_over(ours, None)?.disconnect()?;
    /// println!("{:?}", serving.join().expect("the server does not panic")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the server has as many connections as it may, is stopping, or the stream cannot be used.
    /// The end of the connection is no error of the server's.
    pub fn serve_over(&self, stream: impl IntoConnection) -> io::Result<CloseReason> {
        let (connection, peer) = match stream.bring()? {
            Brought::Socket(socket) => {
                let peer = socket.peer();
                (Connection::socket(socket)?, peer)
            }
            Brought::Any(any) => (Connection::any(any), Peer::Other),
        };
        host::wait(self.as_ref().serve_one(connection, peer))
    }
}
