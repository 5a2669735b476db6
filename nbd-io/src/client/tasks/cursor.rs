//! An export as a stream of bytes with a position, below the traits of every runtime.

use super::client::Client;
use crate::{
    client::{Error, Lost},
    runtime::Network,
};
use bytes::{Bytes, BytesMut};
use std::{
    fmt,
    io::{self, SeekFrom},
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

/// The most that one operation reads or writes, in bytes, and therefore copies.
const MOST: usize = 2 << 20;

type Operation<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// A position in an export. The adapters of runtimes give it the traits of their streams.
///
/// It behaves as an asynchronous file does. There is one operation at a time, of at most 2 MiB, and
/// nothing is read ahead.
///
/// **Reading** moves the position by the number of returned bytes and by nothing else. A read whose
/// future was dropped goes on, and the next read is given its result, unless something was written
/// or the position was changed in between.
///
/// **Writing** takes the data and the position moves on before the server has it: one write is
/// carried out by a task in the background, whether the cursor is polled or not and even when it is
/// dropped. The next write, read or flush waits for it. An error of it is reported once, by
/// the next write or flush.
///
/// **Seeking** never waits.
///
/// A reader and a writer that are polled by different tasks are both woken, although they share
/// one position.
pub struct Cursor<R: Network> {
    client: Client<R>,
    position: u64,
    /// At the position.
    reading: Option<Reading>,
    /// The memory of the last read.
    buffer: BytesMut,
    writing: Option<Arc<Writing>>,
    flushing: Option<Operation<()>>,
    /// An error that was not reported yet.
    failed: Option<Error>,
}

/// A read in flight and the task that waits for it.
struct Reading {
    read: Operation<BytesMut>,
    waker: Waker,
}

impl<R: Network> Cursor<R> {
    /// Starts at the beginning of the export.
    #[must_use]
    pub fn new(client: Client<R>) -> Self {
        Self {
            client,
            position: 0,
            reading: None,
            buffer: BytesMut::new(),
            writing: None,
            flushing: None,
            failed: None,
        }
    }

    /// The export.
    #[must_use]
    pub const fn client(&self) -> &Client<R> {
        &self.client
    }

    /// Offset of the next read or write in bytes.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Reads up to `len` bytes and moves on behind them. Nothing is read only at the end of the
    /// export, or if `len` is 0.
    ///
    /// # Errors
    ///
    /// When the server fails the command, or the connection is over. The position stays.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<&[u8]>> {
        ready!(self.poll_written(cx, Side::Reader));
        let wanted = self.until_end(len);
        if wanted == 0 {
            return Poll::Ready(Ok(&[]));
        }
        let mut reading = self.reading.take().unwrap_or_else(|| Reading {
            read: self.read(wanted),
            waker: cx.waker().clone(),
        });
        let Poll::Ready(read) = reading.read.as_mut().poll(cx) else {
            reading.waker.clone_from(cx.waker());
            self.reading = Some(reading);
            return Poll::Pending;
        };
        self.buffer = read?;
        // Bytes that another read asked for and this one does not want are dropped: they would be
        // old by the time of the next one.
        let n = wanted.min(self.buffer.len());
        self.position += n as u64;
        Poll::Ready(Ok(&self.buffer[..n]))
    }

    /// Takes bytes from the start of `buf`, up to the end of the export, and moves on by as many.
    /// Nothing is taken only there, or if `buf` is empty.
    ///
    /// # Errors
    ///
    /// The error of the write before, or of this one if it fails at once. The position stays.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_written(cx, Side::Writer));
        self.report_failure()?;
        let n = self.until_end(buf.len());
        if n == 0 {
            return Poll::Ready(Ok(0));
        }
        self.flushing = None;
        self.stop_reading();
        let mut write = self.write(Bytes::copy_from_slice(&buf[..n]));
        match write.as_mut().poll(cx) {
            Poll::Ready(written) => written?,
            Poll::Pending => {
                let writing = Arc::<Writing>::default();
                self.writing = Some(writing.clone());
                let teller = WriteReport(writing);
                let task = async move { teller.report(write.await) };
                self.client.runtime().spawn(task);
            }
        }
        self.position += n as u64;
        Poll::Ready(Ok(n))
    }

    /// Waits for writes through this cursor and puts them on stable storage, if the server offers
    /// that.
    ///
    /// # Errors
    ///
    /// The error of the write before; when the server fails the flush, or the connection is over.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_written(cx, Side::Writer));
        self.report_failure()?;
        if !self.client.export().can_flush() {
            return Poll::Ready(Ok(()));
        }
        let client = &self.client;
        let flushing = self.flushing.get_or_insert_with(|| {
            let client = client.clone();
            Box::pin(async move { client.flush().await })
        });
        let flushed = ready!(flushing.as_mut().poll(cx));
        self.flushing = None;
        Poll::Ready(Ok(flushed?))
    }

    /// Changes the position, which may then be behind the end of the export.
    ///
    /// # Errors
    ///
    /// When it would be before the start of the export. The position stays.
    pub fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = self.client.negotiated().seek(self.position, to)?;
        if position != self.position {
            self.stop_reading();
            self.position = position;
        }
        Ok(position)
    }

    /// The length of an operation for which there is a buffer of `len` bytes.
    fn until_end(&self, len: usize) -> usize {
        self.client
            .negotiated()
            .until_end(self.position, len)
            .min(MOST)
    }

    fn read(&mut self, len: usize) -> Operation<BytesMut> {
        let (client, offset) = (self.client.clone(), self.position);
        let mut buffer = mem::take(&mut self.buffer);
        buffer.resize(len, 0);
        Box::pin(async move { Ok(client.read_into(buffer, offset).await?) })
    }

    fn write(&self, data: Bytes) -> Operation<()> {
        let (client, offset) = (self.client.clone(), self.position);
        Box::pin(async move { client.write(data, offset).await })
    }

    /// Drops a read, because it is at another place or its data is out of date. The task that waits
    /// for it has to begin another one.
    fn stop_reading(&mut self) {
        if let Some(Reading { waker, .. }) = self.reading.take() {
            waker.wake();
        }
    }

    /// Waits for the write in flight.
    fn poll_written(&mut self, cx: &mut Context<'_>, side: Side) -> Poll<()> {
        if let Some(writing) = &self.writing {
            let written = ready!(writing.poll(cx, side));
            self.writing = None;
            self.failed = written.err();
        }
        Poll::Ready(())
    }

    fn report_failure(&mut self) -> Result<(), Error> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl<R: Network> fmt::Debug for Cursor<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("client", &self.client)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// The two tasks that may use one cursor.
#[derive(Clone, Copy)]
enum Side {
    Reader,
    Writer,
}

/// A write that a task carries out.
///
/// It must not be left to the task that polls the cursor next: it may keep others from their
/// writes, and that one may be the next to wait for them.
#[derive(Default)]
struct Writing(Mutex<Progress>);

#[derive(Default)]
struct Progress {
    result: Option<Result<(), Error>>,
    /// One for each [`Side`].
    wakers: [Option<Waker>; 2],
}

impl Writing {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(&self, cx: &Context<'_>, side: Side) -> Poll<Result<(), Error>> {
        let mut progress = self.lock();
        if let Some(result) = &progress.result {
            return Poll::Ready(result.clone());
        }
        let old = progress.wakers[side as usize].replace(cx.waker().clone());
        drop(progress);
        drop(old);
        Poll::Pending
    }
}

/// Held by the task, which may be dropped with its runtime.
struct WriteReport(Arc<Writing>);

impl WriteReport {
    fn report(&self, result: Result<(), Error>) {
        let mut progress = self.0.lock();
        progress.result.get_or_insert(result);
        let wakers = mem::take(&mut progress.wakers);
        drop(progress);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Drop for WriteReport {
    fn drop(&mut self) {
        self.report(Err(Error::lost(Lost::Disconnected)));
    }
}
