//! Plain threads as what a server runs on, and the streams that it serves there.

mod listener;
mod stream;
mod threads;
mod wakeup;

pub use listener::Listener;
pub use threads::Threads;

use crate::Stream;
use nbd_io::server::{Host, Peer, Take};
use nbd_socket::Socket;
use rustix::net::sockopt;
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::{fd::AsFd, unix::net::UnixStream},
};
use stream::Connection;
use wakeup::block_on;

impl Host for Threads {
    type Serving<'a, T: 'a> = io::Result<T>;

    fn serving<'a, T: 'a>(
        future: impl Future<Output = io::Result<T>> + Send + 'a,
    ) -> io::Result<T> {
        block_on(future)?
    }
}

impl Take<Socket> for Threads {
    type Transport = Connection;

    fn take(&self, socket: Socket) -> io::Result<(Connection, Peer)> {
        let peer = socket.peer();
        Ok((Connection::socket(socket)?, peer))
    }
}

impl Take<TcpStream> for Threads {
    type Transport = Connection;

    fn take(&self, stream: TcpStream) -> io::Result<(Connection, Peer)> {
        self.take(Socket::from_std(stream)?)
    }
}

impl Take<UnixStream> for Threads {
    type Transport = Connection;

    fn take(&self, stream: UnixStream) -> io::Result<(Connection, Peer)> {
        self.take(Socket::from_std(stream)?)
    }
}

/// Requests are carried out one after the other. Deadlines cannot be kept on such a stream, and when
/// the server stops, it is not woken while it waits; all that is the stream's own business.
impl<S: Read + Write + Send + 'static> Take<Stream<S>> for Threads {
    type Transport = Connection;

    fn take(&self, stream: Stream<S>) -> io::Result<(Connection, Peer)> {
        Ok((Connection::any(stream.into_inner()), Peer::Other))
    }
}

/// The standard input and output of the process, for a [`Server`](crate::Server) that its client has
/// started. Nothing else may be printed there.
///
/// ```no_run
/// use nbd_blocking::{Server, Stdio, exports::Memory};
/// use std::sync::Arc;
///
/// let server = Server::single(Arc::new(Memory::new(1 << 20)));
/// server.serve_over(Stdio)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Stdio;

impl Take<Stdio> for Threads {
    type Transport = Connection;

    fn take(&self, _: Stdio) -> io::Result<(Connection, Peer)> {
        let (input, output) = (io::stdin(), io::stdout());
        let is_socket = sockopt::socket_type(&input).is_ok();
        let is_same =
            is_socket && rustix::fs::fstat(&input)?.st_ino == rustix::fs::fstat(&output)?.st_ino;
        let input = input.as_fd().try_clone_to_owned()?;
        if is_same {
            let socket = Connection::socket(Socket::new(input)?)?;
            return Ok((socket, Peer::Other));
        }
        let duplex = Duplex {
            input: input.into(),
            output: output.as_fd().try_clone_to_owned()?.into(),
        };
        Ok((Connection::any(duplex), Peer::Other))
    }
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
