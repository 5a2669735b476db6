//! Plain threads as the runtime of a server, and the streams that it serves there.

mod listener;
mod stream;
mod threads;
mod wakeup;

pub use listener::Listener;
pub use threads::Threads;

use crate::into_connection::{
    IntoConnection,
    private::{Bring, Brought},
};
use nbd_socket::Socket;
use rustix::net::sockopt;
use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
};
pub(crate) use stream::Connection;
use wakeup::block_on;

/// Carries serving to its end in this thread.
pub(crate) fn wait<T>(serving: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    block_on(serving)?
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

impl IntoConnection for Stdio {}

impl Bring for Stdio {
    fn bring(self) -> io::Result<Brought> {
        let (input, output) = (io::stdin(), io::stdout());
        let is_socket = sockopt::socket_type(&input).is_ok();
        let is_same =
            is_socket && rustix::fs::fstat(&input)?.st_ino == rustix::fs::fstat(&output)?.st_ino;
        let input = input.as_fd().try_clone_to_owned()?;
        if is_same {
            return Ok(Brought::Socket(Socket::new(input)?));
        }
        Ok(Brought::Any(Box::new(Duplex {
            input: input.into(),
            output: output.as_fd().try_clone_to_owned()?.into(),
        })))
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
