//! A socket in memory, for threads that wait and for tasks.

use nbd_io::transport::Transport;
use schedules_std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

pub(crate) const READ_IN_SYSTEM: Duration = Duration::from_secs(1);

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    connection: Arc<Connection>,
    side: usize,
    /// Whether it is one of the two ends, which close when they are dropped.
    is_end: bool,
}

#[derive(Debug, Default)]
struct Connection {
    /// By the end that writes.
    ways: Mutex<[Way; 2]>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Way {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// No more bytes will be written.
    ended: bool,
    /// They would not be read.
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Way {
    fn is_readable(&self) -> bool {
        !self.bytes.is_empty() || self.ended
    }

    fn is_writable(&self) -> bool {
        self.bytes.len() < self.capacity || self.broken || self.ended
    }

    fn read(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if !self.is_readable() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut n = 0;
        for buf in bufs {
            let mut rest = &mut buf[..];
            // It may be in two pieces.
            while !rest.is_empty() && !self.bytes.is_empty() {
                let taken = self.bytes.read(rest)?;
                n += taken;
                rest = &mut rest[taken..];
            }
        }
        Ok(n)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.broken || self.ended {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if !self.is_writable() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut n = 0;
        for buf in bufs {
            let room = self.capacity - self.bytes.len();
            n += self.bytes.write(&buf[..buf.len().min(room)])?;
        }
        Ok(n)
    }

    fn wakers(&mut self) -> impl Iterator<Item = Waker> + use<> {
        [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
    }
}

/// Both ends of a connection that holds so many bytes in each direction.
pub(crate) fn pair(capacity: usize) -> [Stream; 2] {
    let connection = Arc::<Connection>::default();
    for way in lock(&connection.ways).iter_mut() {
        way.capacity = capacity;
    }
    [0, 1].map(|side| Stream {
        connection: connection.clone(),
        side,
        is_end: true,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// The same end, which stays open when this is dropped.
    pub(crate) fn handle(&self) -> Self {
        let (connection, side) = (self.connection.clone(), self.side);
        Self {
            connection,
            side,
            is_end: false,
        }
    }
}

/// As the blocking client has it.
impl Stream {
    fn ways(&self) -> MutexGuard<'_, [Way; 2]> {
        lock(&self.connection.ways)
    }

    /// Has both ends look again.
    fn notify(&self, mut ways: MutexGuard<'_, [Way; 2]>) {
        let wakers: Vec<_> = ways.iter_mut().flat_map(Way::wakers).collect();
        drop(ways);
        self.connection.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn attempt<R>(
        &self,
        block: bool,
        mut attempt: impl FnMut(&mut [Way; 2]) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut ways = self.ways();
        loop {
            match attempt(&mut ways) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && block => {
                    ways = self.connection.changed.wait(ways).unwrap();
                }
                done => {
                    self.notify(ways);
                    return done;
                }
            }
        }
    }

    pub(crate) fn read(&self, bufs: &mut [IoSliceMut<'_>], block: bool) -> io::Result<usize> {
        self.attempt(block, |ways| ways[1 - self.side].read(bufs))
    }

    pub(crate) fn write(&self, bufs: &[IoSlice<'_>], block: bool) -> io::Result<usize> {
        self.attempt(block, |ways| ways[self.side].write(bufs))
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// A time limit may have passed at any moment.
    pub(crate) fn wait(
        &self,
        read: bool,
        write: bool,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let is_ready = |ways: &[Way; 2]| {
            read && ways[1 - self.side].is_readable() || write && ways[self.side].is_writable()
        };
        let mut ways = self.ways();
        while !is_ready(&ways) {
            if deadline.is_some() {
                drop(ways);
                shuttle::thread::yield_now();
                return Err(ErrorKind::TimedOut.into());
            }
            ways = self.connection.changed.wait(ways).unwrap();
        }
        Ok(())
    }

    pub(crate) const fn is_half_duplex(&self) -> bool {
        false
    }

    pub(crate) fn shutdown(&self) {
        let mut ways = self.ways();
        ways[self.side].ended = true;
        self.notify(ways);
    }

    pub(crate) fn close(&self) {
        let mut ways = self.ways();
        for way in ways.iter_mut() {
            way.ended = true;
        }
        ways[1 - self.side].broken = true;
        self.notify(ways);
    }
}

/// As tasks have it.
impl Stream {
    fn poll<R>(
        &self,
        attempt: impl FnOnce(&mut [Way; 2]) -> io::Result<R>,
        keep: impl FnOnce(&mut [Way; 2]) -> &mut Option<Waker>,
        cx: &Context<'_>,
    ) -> Poll<io::Result<R>> {
        let mut ways = self.ways();
        match attempt(&mut ways) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                *keep(&mut ways) = Some(cx.waker().clone());
                Poll::Pending
            }
            done => {
                self.notify(ways);
                Poll::Ready(done)
            }
        }
    }
}

impl Transport for Stream {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let way = 1 - self.side;
        self.poll(
            |ways| ways[way].read(bufs),
            |ways| &mut ways[way].reader,
            cx,
        )
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let way = self.side;
        self.poll(
            |ways| ways[way].write(bufs),
            |ways| &mut ways[way].writer,
            cx,
        )
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown();
        Poll::Ready(Ok(()))
    }

    fn closes_gracefully_on_drop(&self) -> bool {
        true
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Not while a failed schedule is taken down.
        if self.is_end && !std::thread::panicking() {
            let mut ways = self.ways();
            ways[self.side].ended = true;
            ways[1 - self.side].broken = true;
            self.notify(ways);
        }
    }
}
