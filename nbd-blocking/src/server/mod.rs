//! Serving exports: a thread for each connection, and more for exports that wait.

mod bell;
mod stream;
mod threads;

pub use nbd_io::server::{Applicant, Ending, Event, Outcome, Peer, Stopper};
pub use nbd_socket::Listener;
pub use threads::{Sleep, Threads};

use bell::block_on;
use nbd_socket::Socket;
use rustix::net::sockopt;
use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};
use stream::{Connection, Listening};

/// Serves exports to any number of clients, with the methods of [`Serve`].
///
/// ```
/// use nbd_blocking::{ConnectOptions, server::{Serve, Server}};
/// use nbd_io::Memory;
/// use std::{os::unix::net::UnixStream, sync::Arc, thread};
///
/// let server = Server::single(Arc::new(Memory::new(1 << 20)));
/// let (ours, theirs) = UnixStream::pair()?;
/// let serving = thread::spawn(move || server.serve_unix_stream(theirs));
///
/// let client = ConnectOptions::new().connect_over(ours, None)?;
/// client.write_at(b"hello", 4096)?;
/// client.disconnect()?;
/// serving.join().expect("the server does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Server = nbd_io::server::Server<Threads>;

/// How a [`Server`] serves from the thread that calls it.
///
/// Each connection has a thread of its own. It carries out requests itself where the export does
/// not wait, or has been quick of late; others are carried out by threads that all connections
/// share.
pub trait Serve {
    /// Serves clients that connect to a TCP socket, until the server is
    /// [stopped](Stopper::stop). Returns when the last of its connections is closed.
    ///
    /// # Errors
    ///
    /// When the listener fails for good. What goes wrong with one connection is an
    /// [event](Server::on_event) and no error.
    fn serve_tcp(&self, listener: TcpListener) -> io::Result<()>;

    /// Serves clients that connect to a Unix socket; see [`serve_tcp`](Self::serve_tcp). The
    /// socket's file stays behind.
    ///
    /// # Errors
    ///
    /// Like [`serve_tcp`](Self::serve_tcp).
    fn serve_unix(&self, listener: UnixListener) -> io::Result<()>;

    /// Serves clients that connect to any listening socket: one that the process was
    /// [started with](Listener::inherited), one in place of an [old one](Listener::bind_unix), one
    /// for [virtual machines](Listener::bind_vsock), or one of another family; see [`serve_tcp`](Self::serve_tcp).
    ///
    /// # Errors
    ///
    /// Like [`serve_tcp`](Self::serve_tcp).
    fn serve_listener(&self, listener: Listener) -> io::Result<()>;

    /// Serves clients that connect to any of several sockets; see [`serve_tcp`](Self::serve_tcp).
    ///
    /// # Errors
    ///
    /// Like [`serve_tcp`](Self::serve_tcp), when one of them fails.
    fn serve_listeners(&self, listeners: Vec<Listener>) -> io::Result<()>;

    /// Serves one client over a TCP connection, in this thread.
    ///
    /// # Errors
    ///
    /// When the server has as many connections as it may, is stopping, or the socket cannot be
    /// used. How the connection ended is no error of the server's.
    fn serve_tcp_stream(&self, stream: TcpStream) -> io::Result<Ending>;

    /// Serves one client over a Unix connection, in this thread.
    ///
    /// # Errors
    ///
    /// Like [`serve_tcp_stream`](Self::serve_tcp_stream).
    fn serve_unix_stream(&self, stream: UnixStream) -> io::Result<Ending>;

    /// Serves one client over any stream, in this thread, one request after the other.
    ///
    /// The stream has to be blocking. Deadlines cannot be kept on it, and when the server stops,
    /// nobody wakes it while it waits; all that is the stream's own business.
    ///
    /// # Errors
    ///
    /// Like [`serve_tcp_stream`](Self::serve_tcp_stream).
    fn serve_stream(&self, stream: impl Read + Write + Send + 'static) -> io::Result<Ending>;

    /// Serves one client over the standard input and output of the process, as a server does that
    /// its client has started. Nothing else may be printed there.
    ///
    /// # Errors
    ///
    /// Like [`serve_tcp_stream`](Self::serve_tcp_stream).
    fn serve_stdio(&self) -> io::Result<Ending>;
}

impl Serve for Server {
    fn serve_tcp(&self, listener: TcpListener) -> io::Result<()> {
        self.serve_listener(Listener::new(listener)?)
    }

    fn serve_unix(&self, listener: UnixListener) -> io::Result<()> {
        self.serve_listener(Listener::new(listener)?)
    }

    fn serve_listener(&self, listener: Listener) -> io::Result<()> {
        self.serve_listeners(vec![listener])
    }

    fn serve_listeners(&self, listeners: Vec<Listener>) -> io::Result<()> {
        let listeners = listeners.into_iter().map(Listening::new);
        block_on(self.serve(listeners.collect::<io::Result<Vec<_>>>()?))?
    }

    fn serve_tcp_stream(&self, stream: TcpStream) -> io::Result<Ending> {
        stream.set_nodelay(true)?;
        let peer = Peer::Tcp(stream.peer_addr()?);
        serve_socket(self, stream.into(), peer)
    }

    fn serve_unix_stream(&self, stream: UnixStream) -> io::Result<Ending> {
        serve_socket(self, stream.into(), Peer::Unix)
    }

    fn serve_stream(&self, stream: impl Read + Write + Send + 'static) -> io::Result<Ending> {
        serve_one(self, Connection::any(stream), Peer::Other)
    }

    fn serve_stdio(&self) -> io::Result<Ending> {
        let (input, output) = (io::stdin(), io::stdout());
        let is_socket = sockopt::socket_type(&input).is_ok();
        let is_same =
            is_socket && rustix::fs::fstat(&input)?.st_ino == rustix::fs::fstat(&output)?.st_ino;
        if is_same {
            let socket = input.as_fd().try_clone_to_owned()?;
            return serve_socket(self, socket, Peer::Other);
        }
        let input = std::fs::File::from(input.as_fd().try_clone_to_owned()?);
        let output = std::fs::File::from(output.as_fd().try_clone_to_owned()?);
        self.serve_stream(Duplex { input, output })
    }
}

fn serve_socket(server: &Server, socket: OwnedFd, peer: Peer) -> io::Result<Ending> {
    serve_one(server, Connection::socket(Socket::new(socket)?)?, peer)
}

fn serve_one(server: &Server, stream: Connection, peer: Peer) -> io::Result<Ending> {
    block_on(server.serve_transport(stream, peer))?
}

/// Two pipes in opposite directions, without any buffer.
struct Duplex {
    input: std::fs::File,
    output: std::fs::File,
}

impl Read for Duplex {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.read(buf)
    }

    fn read_vectored(&mut self, bufs: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
        self.input.read_vectored(bufs)
    }
}

impl Write for Duplex {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.output.write(buf)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.output.write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
