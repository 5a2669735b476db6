//! A stream in memory that is as awkward as a stream may be: short reads, short writes, and
//! `Pending` without need.

use super::sim::Chance;
use crate::transport::Transport;
use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

/// The way in which a stream cuts its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Not at all.
    Whole,
    /// Into single bytes, each of which is waited for.
    Bytes,
    /// At random, and with `Pending` in between although bytes are there.
    Random,
}

#[derive(Debug, Default)]
struct Way {
    bytes: VecDeque<u8>,
    /// The number of writes.
    writes: usize,
    closed: bool,
    trigger: Option<Trigger>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Way {
    fn close(&mut self) {
        self.closed = true;
        self.wake();
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
        self.writer.take().into_iter().for_each(Waker::wake);
    }
}

/// An action that runs when so many more bytes have been sent.
struct Trigger {
    left: usize,
    action: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Trigger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trigger({})", self.left)
    }
}

impl Way {
    /// The number of bytes that may pass before the trigger fires.
    fn left(&self) -> usize {
        self.trigger
            .as_ref()
            .map_or(usize::MAX, |trigger| trigger.left)
    }

    /// Counts bytes that have passed. Returns the trigger if it fires; run it without the lock held.
    fn passed(&mut self, bytes: usize) -> Option<Trigger> {
        let trigger = self.trigger.as_mut()?;
        trigger.left -= bytes;
        if trigger.left > 0 {
            return None;
        }
        self.trigger.take()
    }
}

/// One end of a stream.
#[derive(Debug)]
pub(crate) struct Pipe {
    from: Arc<Mutex<Way>>,
    to: Arc<Mutex<Way>>,
    chance: Chance,
    cut: Cut,
    capacity: usize,
    /// Every second attempt waits.
    flip: [bool; 2],
}

pub(crate) fn pipe(chance: &Chance) -> (Pipe, Pipe) {
    let (a, b) = (Arc::<Mutex<Way>>::default(), Arc::default());
    let end = |from: &Arc<_>, to: &Arc<_>| Pipe {
        from: Arc::clone(from),
        to: Arc::clone(to),
        chance: chance.clone(),
        cut: Cut::Whole,
        capacity: 256 << 10,
        flip: [false; 2],
    };
    (end(&a, &b), end(&b, &a))
}

fn lock(way: &Mutex<Way>) -> MutexGuard<'_, Way> {
    way.lock().unwrap()
}

/// Has this task woken, and the one that waited before as well: some event loops do that, so that a
/// task which has moved its stream to another one does not wait for ever.
fn wait(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place.replace(cx.waker().clone()) {
        Some(before) if !before.will_wake(cx.waker()) => before.wake(),
        _ => {}
    }
}

/// Ends a stream from outside.
#[derive(Clone, Debug)]
pub(crate) struct Cutter(Arc<Mutex<Way>>, Arc<Mutex<Way>>);

impl Cutter {
    /// The number of writes to the end at which these were made.
    pub(crate) fn writes(&self) -> usize {
        lock(&self.1).writes
    }

    /// Whether the other end was closed.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.0).closed
    }

    /// Half-closes both ways: bytes that were sent before can still be read.
    pub(crate) fn end(&self) {
        lock(&self.0).close();
        lock(&self.1).close();
    }

    /// Runs an action when so many more bytes have been sent, from the end that these were made at
    /// or to it.
    pub(crate) fn trigger(&self, from: bool, left: usize, action: impl FnOnce() + Send + 'static) {
        let action = Box::new(action);
        let way = if from { &self.1 } else { &self.0 };
        lock(way).trigger = Some(Trigger { left, action });
    }

    /// Resets the connection: unread bytes are lost.
    pub(crate) fn cut(&self) {
        for way in [&self.0, &self.1] {
            let mut way = lock(way);
            way.bytes.clear();
            way.close();
        }
    }
}

impl Pipe {
    pub(crate) fn cut(mut self, cut: Cut) -> Self {
        self.cut = cut;
        self
    }

    pub(crate) fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    pub(crate) fn cutter(&self) -> Cutter {
        Cutter(self.from.clone(), self.to.clone())
    }

    /// The number of bytes that may pass now; none means to wait.
    fn portion(&mut self, way: usize, cx: &Context<'_>) -> usize {
        let portion = match self.cut {
            Cut::Whole => return usize::MAX,
            Cut::Bytes => {
                self.flip[way] = !self.flip[way];
                usize::from(self.flip[way])
            }
            Cut::Random => [0, 1, 7, 40, 1000, usize::MAX][self.chance.below(6)],
        };
        if portion == 0 {
            cx.waker().wake_by_ref();
        }
        portion
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        lock(&self.to).close();
        lock(&self.from).close();
    }
}

impl Transport for Pipe {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let portion = self.portion(0, cx);
        if portion == 0 {
            return Poll::Pending;
        }
        let mut from = lock(&self.from);
        if from.bytes.is_empty() && !from.closed {
            wait(&mut from.reader, cx);
            return Poll::Pending;
        }
        from.bytes.make_contiguous();
        let mut n = 0;
        for buf in bufs {
            let len = buf.len().min(portion - n);
            n += from.bytes.read(&mut buf[..len])?;
        }
        from.writer.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let portion = self.portion(1, cx);
        if portion == 0 {
            return Poll::Pending;
        }
        let mut to = lock(&self.to);
        if to.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let portion = portion.min(self.capacity.saturating_sub(to.bytes.len()));
        let portion = portion.min(to.left());
        if portion == 0 {
            wait(&mut to.writer, cx);
            return Poll::Pending;
        }
        let mut n = 0;
        for buf in bufs {
            let len = buf.len().min(portion - n);
            n += to.bytes.write(&buf[..len])?;
        }
        to.writes += 1;
        to.reader.take().into_iter().for_each(Waker::wake);
        let trigger = to.passed(n);
        drop(to);
        if let Some(trigger) = trigger {
            (trigger.action)();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.to).close();
        Poll::Ready(Ok(()))
    }
}
