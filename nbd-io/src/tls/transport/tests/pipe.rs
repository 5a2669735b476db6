//! Pipes in memory, and two tasks that are only polled when they are woken.

use crate::transport::Transport;
use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Polls of one task. No test needs as many, unless something spins.
const POLLS: usize = 1_000_000;

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One end of a connection. It is gone when it is dropped.
#[derive(Debug)]
pub(super) struct End {
    incoming: Rc<RefCell<Pipe>>,
    outgoing: Rc<RefCell<Pipe>>,
    /// Bytes that fit into each direction, and that one call takes.
    capacity: usize,
    chunk: usize,
    /// Every other read, and every other write, pends although it need not.
    lazy: [bool; 2],
}

/// Both ends of a connection.
pub(super) fn pipe(capacity: usize, chunk: usize) -> (End, End) {
    let (there, back) = (Rc::<RefCell<Pipe>>::default(), Rc::default());
    let end = |incoming: &Rc<_>, outgoing: &Rc<_>| End {
        incoming: Rc::clone(incoming),
        outgoing: Rc::clone(outgoing),
        capacity,
        chunk,
        lazy: [false; 2],
    };
    (end(&back, &there), end(&there, &back))
}

impl End {
    /// Has the next write not pend without need.
    pub(super) fn hasten(&mut self) {
        self.lazy[1] = true;
    }

    fn is_lazy(&mut self, direction: usize, cx: &Context<'_>) -> bool {
        let lazy = &mut self.lazy[direction];
        *lazy = !*lazy;
        if *lazy {
            cx.waker().wake_by_ref();
        }
        *lazy
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Transport for End {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_lazy(0, cx) {
            return Poll::Pending;
        }
        let mut pipe = self.incoming.borrow_mut();
        if pipe.bytes.is_empty() {
            if pipe.closed {
                return Poll::Ready(Ok(0));
            }
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let room: usize = bufs.iter().map(|buf| buf.len()).sum();
        let n = room.min(self.chunk).min(pipe.bytes.len());
        let spaces = bufs.iter_mut().flat_map(|buf| buf.iter_mut());
        for (space, byte) in spaces.zip(pipe.bytes.drain(..n)) {
            *space = byte;
        }
        wake(&mut pipe.writer);
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_lazy(1, cx) {
            return Poll::Pending;
        }
        let mut pipe = self.outgoing.borrow_mut();
        if pipe.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = self.chunk.min(self.capacity - pipe.bytes.len());
        if n == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let before = pipe.bytes.len();
        pipe.bytes
            .extend(bufs.iter().flat_map(|buf| buf.iter()).take(n));
        wake(&mut pipe.reader);
        Poll::Ready(Ok(pipe.bytes.len() - before))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.outgoing.borrow_mut();
        pipe.closed = true;
        wake(&mut pipe.reader);
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        for pipe in [&self.incoming, &self.outgoing] {
            let mut pipe = pipe.borrow_mut();
            pipe.closed = true;
            wake(&mut pipe.reader);
            wake(&mut pipe.writer);
        }
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs two tasks to their ends.
pub(super) fn run<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let flags = [(), ()].map(|()| Arc::new(Flag(AtomicBool::new(true))));
    let wakers = flags.clone().map(Waker::from);
    let (mut first, mut second) = (None, None);
    for _ in 0..POLLS {
        let [woken_a, woken_b] = [0, 1].map(|i: usize| flags[i].0.swap(false, Ordering::Relaxed));
        if first.is_none() && woken_a {
            first = ended(a.as_mut().poll(&mut Context::from_waker(&wakers[0])));
        }
        if second.is_none() && woken_b {
            second = ended(b.as_mut().poll(&mut Context::from_waker(&wakers[1])));
        }
        match (first.take(), second.take()) {
            (Some(first), Some(second)) => return (first, second),
            unfinished => (first, second) = unfinished,
        }
        let waiting = flags.iter().all(|flag| !flag.0.load(Ordering::Relaxed));
        assert!(!waiting, "a lost wake-up: both tasks wait");
    }
    panic!("the tasks spin");
}

fn ended<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
