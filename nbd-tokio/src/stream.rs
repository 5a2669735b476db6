//! A stream that a program brings.

use nbd_io::transport::Transport;
use std::{
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Any stream of Tokio's kind as a [`Transport`], such as a pipe in memory or a tunnel.
///
/// A client uses it by [`connect_over`](crate::ConnectOptions::connect_over), a server by
/// [`serve_over`](crate::Server::serve_over).
///
/// For sockets, [`Socket`](crate::Socket) is faster: streams of this kind read into one buffer at a
/// time, and not all of them write from several.
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
        let Some(buf) = bufs.iter_mut().find(|buf| !buf.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let mut buf = ReadBuf::new(buf);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
        read.map_ok(|()| buf.filled().len())
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
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
