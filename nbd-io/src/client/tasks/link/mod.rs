//! One connection that any number of tasks use at once.
//!
//! ```text
//!  Call ── begin ──▶ queue ── pump ──▶ Outbox ──▶ ┐
//!                                                 │ poll  ◀──▶ stream
//!  Call ◀─ take ──── calls ◀───────── Inbox ◀──── ┘
//! ```
//!
//! **Polling.** A [`Call`] that is polled and has no reply yet moves the connection on by itself:
//! it writes the requests that all calls left in the outbox and takes in replies for all of them.
//! There is no hand-over to another task, and a lone caller wakes no task. The stream wakes the
//! task that has polled it last: that of the poller. When the poller has its reply or is dropped,
//! the role goes to another call that waits, which is woken to poll the stream itself.
//!
//! Where others are about to begin requests too, a new call leaves its own in the outbox, and the
//! poller is woken, which comes after them: so they are written by one system call.
//!
//! **The connection task** is the one task behind a connection. It polls the stream when no call
//! does: requests that dropped calls have left half sent, replies that no call waits for, the end
//! of the stream, NBD_CMD_DISC. It also keeps time, in coarse ticks and only while there is
//! something to do, so that no request needs a timer of its own. And if the poller does not come
//! for a while, perhaps because its task waits for something else, the connection task takes the
//! role from it.
//!
//! **Dropping** a call at any time is safe, because nothing here is borrowed from it: payloads are
//! owned by the outbox, and reads go to buffers that are owned by the table of calls.
//!
//! The lock on [`State`] is held while the stream is polled, which does not wait, and never across
//! an await. Tasks are woken after it is released.

mod call;
mod connection_task;
mod polling;
mod table;

use super::{
    super::{
        Error, LinkLog, Lost, Record,
        engine::{Engine, Inbox, Spare, Ticket},
    },
    range_guard::RangeGuard,
};
use crate::{
    transport::Transport,
    watchers::{WatcherId, Watchers},
};
use bytes::BytesMut;
use nbd_proto::{
    Errno,
    client::{Outcome, Transmission},
};
use polling::Stop;
use std::{
    collections::VecDeque,
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

pub(crate) use super::super::Request;
pub(crate) use call::{Call, Done};
pub(crate) use connection_task::ConnectionTask;

/// A stream of any kind.
pub(crate) type Stream = Box<dyn Transport + Send>;

/// No request is given less time than this.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

/// The time between two looks of the connection task at a connection that is used.
const TICK: Duration = Duration::from_secs(1);

/// Limits for the requests of a connection.
pub(crate) struct LinkLimits {
    /// Time limit of a request.
    pub(crate) timeout: Option<Duration>,
    /// Limit of payload in flight, in bytes; a single request may always be.
    pub(crate) bytes_in_flight: u64,
    /// Whether a late request ends the connection if nothing was received since it was sent.
    pub(crate) lose_when_silent: bool,
    pub(crate) clock: Clock,
    /// Memory for reads that have no buffer.
    pub(crate) spare: Arc<Spare<BytesMut>>,
}

/// A connection in transmission.
pub(crate) struct Link {
    state: Mutex<State>,
    /// The [`load`](Link::load) when the lock was last released: the poller may hold the lock for
    /// long.
    load: AtomicUsize,
    /// The log of changes, if the client has one.
    log: Option<LinkLog>,
}

/// The load of a connection on which no request is taken any more.
const CLOSED: usize = usize::MAX;

struct State {
    /// `None` when the connection is over.
    stream: Option<Stream>,
    engine: Engine<BytesMut, Box<Held>, Entry>,
    inbox: Inbox,
    /// The stream may hold back written bytes, or is still to be shut down for writing.
    unflushed: bool,
    /// The requests of calls that have not sent them, by their numbers. They are apart, because most
    /// have.
    unsent: Vec<Unsent>,
    live: usize,
    /// Calls whose requests wait until they may be in flight, in order, with their numbers. Those
    /// that were dropped meanwhile are `stale`.
    queue: VecDeque<(usize, u64)>,
    stale: usize,
    begun_calls: u64,
    /// Requests that were begun since the last one ended.
    begun: usize,
    max_weight: u64,
    /// Calls that wait and can take the role of the poller. Some may be gone.
    waiting: VecDeque<usize>,
    /// The call that the stream wakes, or that was woken to poll it; the connection task if there is
    /// none.
    poller: Option<usize>,
    /// The poller was woken by others than the stream, and has not come yet.
    poller_woken: bool,
    /// The call that is polling right now and need not be woken.
    current: Option<usize>,
    /// Number of times that a task came to poll the stream.
    polls: u64,
    connection_task: Option<Waker>,
    clock: Clock,
    /// When the connection task's timer for late requests goes off.
    armed: Duration,
    /// The connection task looks after the connection once a tick.
    ticking: bool,
    /// There were requests since the last tick.
    busy: bool,
    /// The connection task sees to it that pollers come, since others wait for them.
    watching: bool,
    /// The connection task knows that the session is about to end.
    closing_noted: bool,
    /// The stream is shut down for writing.
    shut_down: bool,
    /// Tasks that wait for the end.
    close_waiters: Watchers,
    /// Tasks to be woken when the lock is released.
    wakes: Vec<Waker>,
}

/// A clock that only goes forward.
pub(crate) type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

/// A call that was begun and whose result was not taken.
#[derive(Debug, Default)]
struct Entry {
    /// Its request was sent.
    is_sent: bool,
    /// The task that waits.
    waker: Option<Waker>,
    /// It was the poller and did not come.
    absent: bool,
    /// Its place is among those that wait.
    listed: bool,
}

#[derive(Debug, Default)]
enum Unsent {
    #[default]
    Nothing,
    Queued(Queued),
    Failed(Error, BytesMut),
}

/// A call whose request waits until it may be in flight.
#[derive(Debug)]
struct Queued {
    number: u64,
    request: Request,
    sink: BytesMut,
    held: Option<Box<Held>>,
    /// When it has taken too long.
    due: Duration,
}

/// State of a request until it is answered or given up.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Its entry for the log of changes, to be made when the answer comes.
    record: Option<Record>,
    /// The turn of a change.
    turn: Option<Arc<RangeGuard>>,
    is_answered: bool,
}

impl Held {
    /// `None` if a request has nothing. In a box, because most have nothing, and every call has room
    /// for it.
    pub(crate) fn new(record: Option<Record>, turn: Option<Arc<RangeGuard>>) -> Option<Box<Self>> {
        (record.is_some() || turn.is_some()).then(|| {
            Box::new(Self {
                record,
                turn,
                is_answered: false,
            })
        })
    }
}

impl Ticket for Held {
    fn answered(&mut self, result: &mut Result<Outcome, Error>) {
        if let Some(mut record) = self.record.take() {
            record.answered(result);
        }
        self.is_answered = is_answer(result.as_ref().err());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // No lock is held here, as there is when the answer is read.
        if let (true, Some(turn)) = (self.is_answered, &self.turn) {
            turn.answered();
        }
    }
}

/// Whether a request with this error, or none, need not be sent again.
pub(crate) fn is_answer(error: Option<&Error>) -> bool {
    match error {
        Some(Error::Lost(_)) => false,
        Some(Error::Failed { source, .. }) => source.errno != Errno::Shutdown,
        _ => true,
    }
}

impl Link {
    /// A connection that needs a [`ConnectionTask`].
    pub(crate) fn new(
        stream: Stream,
        transmission: Box<Transmission>,
        limits: LinkLimits,
        log: Option<LinkLog>,
    ) -> Self {
        let LinkLimits {
            timeout,
            bytes_in_flight,
            lose_when_silent,
            clock,
            spare,
        } = limits;
        let timeout = timeout.map(|timeout| timeout.max(SHORTEST_TIMEOUT));
        let mut engine = Engine::new(transmission, timeout, lose_when_silent);
        engine.share(spare);
        Self {
            state: Mutex::new(State {
                stream: Some(stream),
                engine,
                inbox: Inbox::default(),
                unflushed: false,
                unsent: Vec::new(),
                live: 0,
                queue: VecDeque::new(),
                stale: 0,
                begun_calls: 0,
                begun: 0,
                max_weight: bytes_in_flight,
                waiting: VecDeque::new(),
                poller: None,
                poller_woken: false,
                current: None,
                polls: 0,
                connection_task: None,
                clock,
                armed: Duration::MAX,
                ticking: false,
                busy: false,
                watching: false,
                closing_noted: false,
                shut_down: false,
                close_waiters: Watchers::default(),
                wakes: Vec::new(),
            }),
            load: AtomicUsize::new(0),
            log,
        }
    }

    /// The log of changes, if the client has one.
    pub(crate) const fn log(&self) -> Option<&LinkLog> {
        self.log.as_ref()
    }

    /// Number of calls that were begun and have not ended; `None` if no more requests are taken.
    pub(crate) fn load(&self) -> Option<usize> {
        let load = self.load.load(Ordering::Relaxed);
        (load != CLOSED).then_some(load)
    }

    /// A call with a buffer for a read, or an empty one if it is to be allocated when the reply comes.
    /// Nothing happens before it is polled.
    pub(crate) fn call(&self, request: Request, sink: BytesMut) -> Call<'_> {
        Call::new(self, request, sink, None)
    }

    /// Like [`call`](Link::call), of a request that may have something until it is answered.
    pub(crate) fn call_with(
        &self,
        request: Request,
        sink: BytesMut,
        held: Option<Box<Held>>,
    ) -> Call<'_> {
        Call::new(self, request, sink, held)
    }

    /// Begins to disconnect: no request is taken any more, those in flight are waited for, and the
    /// connection task does the rest. Returns whether it was begun only now.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.lock();
        let first = state.close();
        self.unlock(state);
        first
    }

    /// Ends the connection at once.
    pub(crate) fn abort(&self, why: Lost) {
        let mut state = self.lock();
        state.lose(why);
        self.unlock(state);
    }

    /// The end of the connection, or the reason for which it takes no more requests though this
    /// side wants some.
    pub(crate) fn ended(&self) -> Option<Arc<Lost>> {
        let state = self.lock();
        let shuts_down = state.engine.server_shuts_down();
        let ending = || shuts_down.then(|| Arc::new(Lost::ShutsDown));
        state.engine.lost().cloned().or_else(ending)
    }

    /// Waits until the connection is over.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped waits no more.
    pub(crate) async fn over(&self) -> Arc<Lost> {
        let mut close_waiter = CloseWaiter {
            link: self,
            place: None,
        };
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if let Some(lost) = state.engine.lost() {
                return Poll::Ready(lost.clone());
            }
            let old = state
                .close_waiters
                .watch(&mut close_waiter.place, cx.waker());
            drop(state);
            drop(old);
            Poll::Pending
        })
        .await
    }

    /// A call was dropped before its end.
    fn drop_call(&self, key: usize) {
        let mut state = self.lock();
        let old = state.drop_call(key);
        self.unlock(state);
        drop(old);
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the lock, and only then wakes whom that concerns.
    #[inline(always)]
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let load = if state.settle() { state.live() } else { CLOSED };
        if state.engine.has_ready() {
            state.notify();
        }
        self.load.store(load, Ordering::Relaxed);
        if !state.wakes.is_empty() || !state.engine.released().is_empty() {
            self.unlock_and_wake(state);
        }
    }

    fn unlock_and_wake(&self, mut state: MutexGuard<'_, State>) {
        let released = mem::take(state.engine.released());
        let mut wakes = mem::take(&mut state.wakes);
        drop(state);
        drop(released);
        wakes.drain(..).for_each(Waker::wake);
        // The list's memory is used again, if no other task needs the lock.
        if let Ok(mut state) = self.state.try_lock()
            && state.wakes.is_empty()
        {
            state.wakes = wakes;
        }
    }
}

/// A task that waits for the end of a connection.
struct CloseWaiter<'a> {
    link: &'a Link,
    place: WatcherId,
}

impl Drop for CloseWaiter<'_> {
    fn drop(&mut self) {
        if self.place.is_some() {
            let old = self.link.lock().close_waiters.leave(self.place);
            drop(old);
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Link")
            .field("transmission", state.engine.transmission())
            .field("calls", &state.live())
            .field("closing", &state.engine.is_closing())
            .field("lost", &state.engine.lost())
            .finish_non_exhaustive()
    }
}
