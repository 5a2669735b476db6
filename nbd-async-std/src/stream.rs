//! A stream that a program brings.

use futures_io::{AsyncRead, AsyncWrite};
use nbd_io::transport::Transport;
use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    task::{Context, Poll},
};

/// Any stream of `futures-io`'s kind as a [`Transport`], such as one of async-std's or smol's.
///
/// A client uses it by [`connect_over`](crate::ConnectOptions::connect_over), a server by
/// [`serve_over`](crate::Server::serve_over).
///
/// For sockets, [`Socket`](crate::Socket) is faster: async-std's own Unix sockets, for one, write
/// only the first of several buffers.
#[derive(Debug)]
pub struct Stream<S> {
    stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Takes over a stream.
    pub const fn new(stream: S) -> Self {
        Self { stream }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport for Stream<S> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read_vectored(cx, bufs)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
