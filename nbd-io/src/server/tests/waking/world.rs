//! A client, a clock and threads whose every step is in a script.

use crate::{
    runtime::{Runtime, Tasks},
    server::CloseReason,
    transport::Transport,
};
use nbd_proto::HeaderStyle;
use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Read},
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

/// Threads of the simulation that may be in the middle of a request at the same time.
const THREADS: usize = 3;

pub(super) type Serving = Pin<Box<dyn Future<Output = io::Result<CloseReason>>>>;

thread_local! {
    /// The session, unless it is being polled: jobs that are in the middle of a request poll it, too.
    pub(super) static SESSION: RefCell<Option<Serving>> = const { RefCell::new(None) };
}

/// A client, a clock and threads without work of their own: the script has their next steps.
#[derive(Clone)]
pub(super) struct World {
    state: Arc<Mutex<State>>,
    woken: Arc<Woken>,
    pub(super) setup: Setup,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) script: VecDeque<Act>,
    /// Bytes that the client has still to send, bytes of it that have come, and their number.
    pub(super) unsent: VecDeque<u8>,
    arrived: VecDeque<u8>,
    pub(super) delivered: usize,
    reader: Option<Waker>,
    /// Number of bytes that the client still takes, and those that it took.
    pub(super) room: usize,
    pub(super) taken: Vec<u8>,
    writer: Option<Waker>,
    jobs: VecDeque<Box<dyn FnOnce() + Send>>,
    running: usize,
    now: Duration,
    timers: Vec<(Duration, Waker)>,
}

/// Whether the session is to be polled.
#[derive(Default)]
pub(super) struct Woken {
    woken: AtomicBool,
    /// It is polled while it is being woken, unless it is being polled already.
    at_once: bool,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if self.at_once {
            poll(&self);
        }
    }
}

fn poll(woken: &Arc<Woken>) {
    let Some(mut session) = SESSION.take() else {
        return;
    };
    woken.woken.store(false, Ordering::SeqCst);
    let waker = Waker::from(Arc::clone(woken));
    let poll = session.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(poll.is_pending(), "{poll:?}");
    SESSION.set(Some(session));
}

/// Settings of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) style: HeaderStyle,
    pub(super) may_block: bool,
    pub(super) reads_now: bool,
    pub(super) own_thread: bool,
    pub(super) knows_readiness: bool,
    pub(super) in_flight: u64,
    pub(super) is_limited: bool,
    pub(super) polls_at_once: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    /// So many bytes of the client arrive.
    Deliver(usize),
    /// The client takes so many bytes more.
    Take(usize),
    PollIfWoken,
    /// As if something had woken the session for nothing.
    PollInVain,
    Run,
    Pass(Duration),
}

impl World {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn new(setup: Setup) -> Self {
        Self {
            state: Arc::default(),
            woken: Arc::new(Woken {
                at_once: setup.polls_at_once,
                ..Woken::default()
            }),
            setup,
        }
    }

    pub(super) fn act(&self, act: Act) {
        match act {
            Act::Deliver(n) => {
                let mut state = self.state();
                let n = n.min(state.unsent.len());
                let later = state.unsent.split_off(n);
                let mut arriving = mem::replace(&mut state.unsent, later);
                state.arrived.append(&mut arriving);
                state.delivered += n;
                let reader = state.reader.take();
                drop(state);
                reader.into_iter().for_each(Waker::wake);
            }
            Act::Take(n) => {
                let mut state = self.state();
                state.room = state.room.saturating_add(n);
                let writer = state.writer.take();
                drop(state);
                writer.into_iter().for_each(Waker::wake);
            }
            Act::PollIfWoken if !self.woken.woken.load(Ordering::SeqCst) => {}
            Act::PollIfWoken | Act::PollInVain => self.poll(),
            Act::Run => {
                let mut state = self.state();
                if state.running == THREADS {
                    return;
                }
                if let Some(job) = state.jobs.pop_front() {
                    state.running += 1;
                    drop(state);
                    job();
                    self.state().running -= 1;
                }
            }
            Act::Pass(time) => self.pass(time),
        }
    }

    pub(super) fn poll(&self) {
        poll(&self.woken);
    }

    pub(super) fn pass(&self, time: Duration) {
        let mut state = self.state();
        state.now += time;
        let now = state.now;
        let timers = mem::take(&mut state.timers);
        let (due, later) = timers.into_iter().partition(|(at, _)| *at <= now);
        state.timers = later;
        drop(state);
        let due: Vec<(Duration, Waker)> = due;
        due.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Events while an export carries out a request on another thread.
    pub(super) fn meanwhile(&self) {
        if self.state().running > 0 {
            let act = self.state().script.pop_front();
            act.into_iter().for_each(|act| self.act(act));
        }
    }

    /// Goes on until the session is not woken and no thread has anything to do.
    pub(super) fn settle(&self) {
        loop {
            if self.woken.woken.load(Ordering::SeqCst) {
                self.poll();
            } else if !self.state().jobs.is_empty() {
                self.act(Act::Run);
            } else {
                return;
            }
        }
    }
}

pub(super) struct Timer(World, Duration);

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.state();
        if state.now < self.1 {
            state.timers.push((self.1, cx.waker().clone()));
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Runtime for World {
    type Sleep = Timer;

    const TIMERS_WAKE: bool = true;

    fn now(&self) -> Duration {
        self.state().now
    }

    fn sleep(&self, time: Duration) -> Timer {
        Timer(self.clone(), self.now() + time)
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        self.state().jobs.push_back(Box::new(job));
    }

    fn own_thread_clock(&self) -> Option<Duration> {
        self.setup.own_thread.then(|| self.now())
    }
}

impl Tasks for World {
    fn spawn(&self, _: impl Future<Output = ()> + Send + 'static) {
        unreachable!("no connection was accepted")
    }
}

impl Transport for World {
    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        if self.setup.knows_readiness && state.arrived.is_empty() {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        if state.arrived.is_empty() {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut n = 0;
        for buf in bufs {
            let read = state.arrived.read(buf)?;
            n += read;
            // A queue is read from in one or two pieces, the first of which is short.
            if read < buf.len() {
                break;
            }
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        if state.room == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut n = 0;
        for buf in bufs {
            let taken = &buf[..buf.len().min(state.room)];
            state.taken.extend_from_slice(taken);
            state.room -= taken.len();
            n += taken.len();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
