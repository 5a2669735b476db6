//! An export as a seekable stream of bytes.

use crate::{AsyncStd, Client};
use futures_io::{AsyncRead, AsyncSeek, AsyncWrite};
use nbd_io::client::tasks;
use std::{
    io::{self, SeekFrom},
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A position in an export, with the traits of `futures-io`, which are those of async-std and of
/// smol.
///
/// It does for an export the work of `async_std::fs::File` for a file. Nothing is buffered or read
/// ahead: wrap it in a `BufReader` or `BufWriter` for small reads and writes. Every operation moves
/// up to 2 MiB. `io::copy` moves only 8 KiB at a time, so that both ends want such a buffer: with
/// 1 MiB a copy is about as fast as one by hand, larger ones are not faster.
///
/// A write takes the data and is carried out in the background, one at a time. The next write,
/// flush or close reports its error. Others may rely on written data only after a flush:
/// [`flush`](AsyncWrite::poll_flush) and [`close`](AsyncWrite::poll_close) put it on stable
/// storage, if the server offers that; `close` closes nothing. When a cursor is dropped, an error
/// of its last write is not reported.
///
/// At the end of the export nothing is read or written, so that `write_all` fails there with
/// [`WriteZero`](io::ErrorKind::WriteZero). The [`io::Error`] of a failure contains the client's
/// [`Error`](crate::Error).
///
/// # Cancel safety
///
/// A read whose future is dropped has read nothing, and a write whose future is dropped has written
/// nothing. The dropped read goes on, and a next one at the same place may be given its data,
/// although others have written there since.
///
/// ```no_run
/// use async_std::io::{ReadExt, SeekExt, SeekFrom, WriteExt};
/// use nbd_async_std::Cursor;
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let mut disk = Cursor::new(nbd_async_std::connect("nbd://localhost/disk").await?);
/// disk.seek(SeekFrom::End(-512)).await?;
/// let mut last = [0; 512];
/// disk.read_exact(&mut last).await?;
/// disk.seek(SeekFrom::Start(0)).await?;
/// disk.write_all(&last).await?;
/// disk.flush().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Cursor {
    inner: tasks::Cursor<AsyncStd>,
    client: Client,
}

impl Cursor {
    /// Starts at the beginning of the export.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            inner: tasks::Cursor::new(client.clone().into()),
            client,
        }
    }

    /// The export.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Where the next read or write starts, in bytes.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.inner.position()
    }
}

impl AsyncRead for Cursor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = ready!(self.inner.poll_read(cx, buf.len()))?;
        buf[..bytes.len()].copy_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }
}

impl AsyncWrite for Cursor {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_flush(cx)
    }
}

impl AsyncSeek for Cursor {
    fn poll_seek(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: SeekFrom,
    ) -> Poll<io::Result<u64>> {
        Poll::Ready(self.inner.seek(to))
    }
}
