//! One connection that any number of tasks use at once.
//!
//! ```text
//!  Call ── begin ──▶ queue ── pump ──▶ Outbox ──▶ ┐
//!                                                 │ drive ◀──▶ stream ── Signal ──▶ the driver
//!  Call ◀─ take ──── calls ◀───────── Inbox ◀──── ┘
//! ```
//!
//! **Driving.** A [`Call`] that is polled and has no reply yet moves the connection on by itself:
//! it writes what everybody left in the outbox and takes in replies for everybody. There is no
//! hand-over to another task, and a lone caller wakes nobody. The stream is polled with one waker,
//! the [`Signal`], which wakes the call that drove last. When that call has its reply or is
//! dropped, the role goes to another one that waits.
//!
//! **The keeper** is the one task behind a connection. It drives when no call does: what dropped
//! calls have left half sent, replies that nobody wants, the end of the stream, the farewell. It
//! also keeps time, in coarse ticks and only while there is something to do, so that no request
//! needs a timer of its own. And if a call was woken and does not come, because its task waits for
//! something else, the keeper takes the role from it.
//!
//! **Dropping** a call at any time is safe, because nothing here is borrowed from it: payloads are
//! owned by the outbox, and reads go to buffers that are owned by the table of calls.
//!
//! The lock on [`State`] is held while the stream is polled, which does not wait, and never across
//! an await. Tasks are woken after it is released.

mod drive;
mod keeper;
mod request;
mod signal;

use super::super::{Error, Lost, Outbox};
use crate::transport::Transport;
use bytes::BytesMut;
use drive::{INBOX, LARGE, Stop};
use nbd_proto::{
    Command,
    client::{Cookie, Outcome, Transmission},
};
use signal::{Signal, replace};
use std::{
    collections::VecDeque,
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

pub(crate) use keeper::Keeper;
pub(crate) use request::Request;

/// A stream of any kind.
pub(crate) type Stream = Box<dyn Transport + Send>;

/// No request is given less time than this.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

/// The longest time between two looks of the keeper at a connection that is used.
const LONGEST_TICK: Duration = Duration::from_secs(1);

/// A connection in transmission.
pub(crate) struct Link {
    state: Mutex<State>,
    signal: Arc<Signal>,
    /// The signal as the stream knows it.
    waker: Waker,
}

struct State {
    /// `None` when the connection is over.
    stream: Option<Stream>,
    transmission: Transmission,
    inbox: Vec<u8>,
    outbox: Outbox,
    /// The stream may hold back what was written.
    unflushed: bool,
    calls: Vec<Entry>,
    free: Vec<usize>,
    /// What is kept of each request in flight, by the slot of its cookie.
    slots: Vec<Slot>,
    /// Calls whose requests wait until they may be in flight, in order.
    queue: VecDeque<usize>,
    /// Payload of all requests in flight, in bytes.
    weight: u64,
    max_weight: u64,
    /// Reads in flight whose payload is worth a system call of its own.
    large: usize,
    signal: Arc<Signal>,
    /// The call that the signal wakes; the keeper if there is none.
    driver: Option<usize>,
    /// The call that is driving right now and need not be woken.
    current: Option<usize>,
    /// How often somebody came to drive.
    drives: u64,
    keeper: Option<Waker>,
    /// The keeper's clock. It stands still while the connection is idle.
    now: Duration,
    tick: Duration,
    timeout: Option<Duration>,
    /// The keeper looks after the connection once a tick.
    ticking: bool,
    /// There were requests since the last tick.
    busy: bool,
    /// The keeper sees to it that drivers come when they are called.
    watching: bool,
    /// No request is taken any more, because the session is about to end.
    closing: bool,
    /// `NBD_CMD_DISC` is on its way.
    goodbye: bool,
    lost: Option<Arc<Lost>>,
    /// Tasks that wait for the end.
    mourners: Vec<Waker>,
    /// Tasks to be woken when the lock is released.
    wakes: Vec<Waker>,
}

/// A call that was begun and whose result was not taken.
#[derive(Debug)]
struct Entry {
    phase: Phase,
    /// The task that is to be woken when the call is done.
    waker: Option<Waker>,
    /// It was woken to drive and did not come.
    absent: bool,
    command: Command,
    /// When the call has taken too long, by the keeper's clock.
    due: Duration,
    /// The buffer of a read.
    sink: BytesMut,
}

#[derive(Debug)]
enum Phase {
    Free,
    Queued(Request),
    InFlight(Cookie),
    Done(Result<Outcome, Error>),
}

/// A request in flight.
#[derive(Debug, Default)]
struct Slot {
    /// `None` if it was given up.
    call: Option<usize>,
    weight: u64,
    large: bool,
}

impl Link {
    /// A connection whose requests may take `timeout` each and have `max_weight` bytes of payload
    /// together. It needs a [`Keeper`].
    pub(crate) fn new(
        stream: Stream,
        transmission: Transmission,
        timeout: Option<Duration>,
        max_weight: u64,
    ) -> Self {
        let timeout = timeout.map(|timeout| timeout.max(SHORTEST_TIMEOUT));
        let signal = Arc::<Signal>::default();
        Self {
            state: Mutex::new(State {
                stream: Some(stream),
                transmission,
                inbox: vec![0; INBOX],
                outbox: Outbox::default(),
                unflushed: false,
                calls: Vec::new(),
                free: Vec::new(),
                slots: Vec::new(),
                queue: VecDeque::new(),
                weight: 0,
                max_weight,
                large: 0,
                signal: signal.clone(),
                driver: None,
                current: None,
                drives: 0,
                keeper: None,
                now: Duration::ZERO,
                tick: timeout.map_or(LONGEST_TICK, |timeout| LONGEST_TICK.min(timeout / 8)),
                timeout,
                ticking: false,
                busy: false,
                watching: false,
                closing: false,
                goodbye: false,
                lost: None,
                mourners: Vec::new(),
                wakes: Vec::new(),
            }),
            waker: Waker::from(signal.clone()),
            signal,
        }
    }

    /// Whether the connection is over, and why.
    pub(crate) fn lost(&self) -> Option<Arc<Lost>> {
        self.lock().lost.clone()
    }

    /// How many calls were begun and have not ended.
    pub(crate) fn load(&self) -> usize {
        self.lock().live()
    }

    /// A call with a buffer for what it reads. Nothing happens before it is polled.
    pub(crate) fn call(&self, request: Request, sink: BytesMut) -> Call<'_> {
        Call {
            link: self,
            stage: Stage::New(request, sink),
        }
    }

    /// Begins the farewell: no request is taken any more, those in flight are waited for, and the
    /// keeper does the rest. Returns whether it was begun only now.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.lock();
        let first = state.close();
        unlock(state);
        first
    }

    /// Waits until the connection is over.
    pub(crate) async fn over(&self) -> Arc<Lost> {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if let Some(lost) = &state.lost {
                return Poll::Ready(lost.clone());
            }
            if !state.mourners.iter().any(|old| old.will_wake(cx.waker())) {
                state.mourners.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Releases the lock, and only then wakes whom that concerns.
fn unlock(mut state: MutexGuard<'_, State>) {
    let wakes = mem::take(&mut state.wakes);
    drop(state);
    wakes.into_iter().for_each(Waker::wake);
}

/// One request and its reply.
///
/// # Cancel safety
///
/// It can be dropped at any time. A request that was not put into the outbox yet is forgotten; any
/// other is sent and its reply thrown away.
#[must_use]
pub(crate) struct Call<'a> {
    link: &'a Link,
    stage: Stage,
}

enum Stage {
    New(Request, BytesMut),
    Begun(usize),
    Over,
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) result: Result<Outcome, Error>,
    /// The buffer that was handed over. Its contents are to be trusted only after success.
    pub(crate) sink: BytesMut,
}

impl Call<'_> {
    fn begin(&mut self, state: &mut State) -> usize {
        match mem::replace(&mut self.stage, Stage::Over) {
            Stage::New(request, sink) => {
                let key = state.begin(request, sink);
                self.stage = Stage::Begun(key);
                key
            }
            Stage::Begun(key) => {
                self.stage = Stage::Begun(key);
                key
            }
            Stage::Over => panic!("a call is not polled after its end"),
        }
    }
}

impl Future for Call<'_> {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let link = self.link;
        let mut state = link.lock();
        let key = self.begin(&mut state);
        let mut stop = None;
        let mut old = [None, None, None, None];
        if !state.is_done(key) {
            old[0] = state.attend(key, cx.waker());
            old[1] = state.lead(key);
            stop = Some(state.drive(&link.waker, Some(key)));
        }
        let done = state.take(key);
        if done.is_some() {
            self.stage = Stage::Over;
            old[2] = state.release(key);
            if state.driver == Some(key) {
                old[3] = state.pass_on(stop == Some(Stop::Quiet));
            }
        }
        unlock(state);
        drop(old);
        match done {
            Some(done) => Poll::Ready(done),
            None => {
                if stop == Some(Stop::Tired) {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Stage::Begun(key) = self.stage {
            let mut state = self.link.lock();
            let old = state.forget(key);
            unlock(state);
            drop(old);
        }
    }
}

impl State {
    fn live(&self) -> usize {
        self.calls.len() - self.free.len()
    }

    /// Takes a request in, and puts it into the outbox if it may be in flight.
    fn begin(&mut self, request: Request, sink: BytesMut) -> usize {
        let command = request.command();
        let phase = match &self.lost {
            Some(lost) => Phase::Done(Err(Error::Lost(lost.clone()))),
            None if self.closing => Phase::Done(Err(Error::lost(Lost::Disconnected))),
            None => Phase::Queued(request),
        };
        let queued = matches!(phase, Phase::Queued(_));
        let due = self.due();
        let key = self.free.pop().unwrap_or(self.calls.len());
        if key == self.calls.len() {
            self.calls.push(Entry {
                phase,
                waker: None,
                absent: false,
                command,
                due,
                sink,
            });
        } else {
            let entry = &mut self.calls[key];
            entry.phase = phase;
            entry.command = command;
            entry.due = due;
            entry.sink = sink;
        }
        if queued {
            self.queue.push_back(key);
            self.pump();
            self.busy = true;
            let many = self.live() > 1;
            if !self.ticking || many && !self.watching {
                self.ticking = true;
                self.watching |= many;
                self.wake_keeper();
            }
        }
        key
    }

    /// When a request that is sent now has taken too long: not before its time, because the clock
    /// is behind by up to a tick.
    fn due(&self) -> Duration {
        self.timeout.map_or(Duration::MAX, |timeout| {
            self.now.saturating_add(self.tick).saturating_add(timeout)
        })
    }

    /// Puts requests into the outbox in the order in which they came, as long as they may be in
    /// flight.
    fn pump(&mut self) {
        while let Some(&key) = self.queue.front() {
            let Phase::Queued(request) = &self.calls[key].phase else {
                self.queue.pop_front();
                continue;
            };
            let weight = request.weight();
            let heavy = self.weight > 0 && self.weight.saturating_add(weight) > self.max_weight;
            if heavy || !self.transmission.has_room() {
                return;
            }
            self.queue.pop_front();
            let due = self.due();
            let entry = &mut self.calls[key];
            let Phase::Queued(request) = mem::replace(&mut entry.phase, Phase::Free) else {
                continue;
            };
            match request.start(&mut self.transmission) {
                Ok((cookie, header, payload)) => {
                    entry.phase = Phase::InFlight(cookie);
                    entry.due = due;
                    let large = entry.sink.len() >= LARGE;
                    let slot = cookie.slot();
                    if self.slots.len() <= slot {
                        self.slots.resize_with(slot + 1, Slot::default);
                    }
                    self.slots[slot] = Slot {
                        call: Some(key),
                        weight,
                        large,
                    };
                    self.weight += weight;
                    self.large += usize::from(large);
                    self.outbox.push_owned(header.as_bytes(), payload);
                }
                Err(misuse) => self.finish(key, Err(misuse.into())),
            }
        }
    }

    /// Takes note of the task that waits for a call.
    #[must_use]
    fn attend(&mut self, key: usize, waker: &Waker) -> Option<Waker> {
        let entry = &mut self.calls[key];
        entry.absent = false;
        let waits = !matches!(entry.phase, Phase::Done(_));
        replace(&mut entry.waker, waits.then_some(waker))
    }

    /// Makes a call the one that the stream wakes.
    #[must_use]
    fn lead(&mut self, key: usize) -> Option<Waker> {
        self.driver = Some(key);
        self.signal.set(self.calls[key].waker.as_ref())
    }

    /// Gives the role of the driver to another call that waits, else to the keeper. Unless the
    /// stream is `quiet` and will wake the new driver, it has to be woken.
    #[must_use]
    fn pass_on(&mut self, quiet: bool) -> Option<Waker> {
        let waits = |entry: &Entry| entry.waker.is_some() && !entry.absent;
        self.driver = self.calls.iter().position(waits);
        let Some(next) = self.driver else {
            if !quiet && self.has_work() {
                self.wake_keeper();
            }
            return self.signal.set(self.keeper.as_ref());
        };
        let waker = self.calls[next].waker.as_ref();
        if !quiet {
            self.wakes.extend(waker.cloned());
        }
        self.signal.set(waker)
    }

    /// Takes the role of the driver from a call that was woken and did not come.
    fn dismiss(&mut self) {
        if let Some(driver) = self.driver.take() {
            self.calls[driver].absent = true;
        }
    }

    /// Whether there is something to do for a connection that nobody waits for.
    fn has_work(&self) -> bool {
        self.closing
            || self.unflushed
            || !self.outbox.is_empty()
            || self.transmission.in_flight() > 0
    }

    fn wake_keeper(&mut self) {
        self.wakes.extend(self.keeper.clone());
    }

    fn is_done(&self, key: usize) -> bool {
        matches!(self.calls[key].phase, Phase::Done(_))
    }

    /// What came of a call, which is then to be [released](State::release).
    fn take(&mut self, key: usize) -> Option<Done> {
        let entry = &mut self.calls[key];
        match mem::replace(&mut entry.phase, Phase::Free) {
            Phase::Done(result) => Some(Done {
                result,
                sink: mem::take(&mut entry.sink),
            }),
            phase => {
                entry.phase = phase;
                None
            }
        }
    }

    /// Frees the place of a call.
    #[must_use]
    fn release(&mut self, key: usize) -> Option<Waker> {
        let entry = &mut self.calls[key];
        entry.phase = Phase::Free;
        entry.sink = BytesMut::new();
        entry.absent = false;
        self.free.push(key);
        entry.waker.take()
    }

    /// A call was dropped.
    #[must_use]
    fn forget(&mut self, key: usize) -> [Option<Waker>; 2] {
        self.give_up(key);
        let waker = self.release(key);
        self.pump();
        if self.driver == Some(key) {
            return [waker, self.pass_on(false)];
        }
        // What was left in the outbox may have nobody else who sends it.
        match self.driver {
            Some(driver) if !self.outbox.is_empty() => {
                let driver = self.calls[driver].waker.clone();
                self.wakes.extend(driver);
            }
            None if self.has_work() => self.wake_keeper(),
            _ => {}
        }
        [waker, None]
    }

    /// Makes sure that what comes of a call's request is thrown away.
    fn give_up(&mut self, key: usize) {
        match self.calls[key].phase {
            Phase::Queued(_) => self.queue.retain(|queued| *queued != key),
            Phase::InFlight(cookie) => {
                self.transmission.abandon(cookie);
                self.slots[cookie.slot()].call = None;
            }
            Phase::Done(_) | Phase::Free => {}
        }
    }

    /// A request is complete, and its cookie free.
    fn complete(&mut self, cookie: Cookie, result: Result<Outcome, Error>) {
        let Slot {
            call,
            weight,
            large,
        } = mem::take(&mut self.slots[cookie.slot()]);
        self.weight -= weight;
        self.large -= usize::from(large);
        if let Some(key) = call {
            self.finish(key, result);
        }
        if self.closing {
            self.wake_keeper();
        } else if self.transmission.server_shuts_down() {
            // C-188
            self.close();
        }
    }

    /// Leaves a call its result.
    fn finish(&mut self, key: usize, result: Result<Outcome, Error>) {
        let entry = &mut self.calls[key];
        entry.phase = Phase::Done(result);
        if self.current != Some(key) {
            self.wakes.extend(entry.waker.take());
        }
    }

    /// Ends calls that have taken too long.
    fn expire(&mut self) {
        let Some(after) = self.timeout else { return };
        for key in 0..self.calls.len() {
            let Entry {
                phase,
                due,
                command,
                ..
            } = &self.calls[key];
            let waits = matches!(phase, Phase::Queued(_) | Phase::InFlight(_));
            if waits && *due <= self.now {
                let command = *command;
                self.give_up(key);
                self.finish(key, Err(Error::Timeout { command, after }));
            }
        }
        self.pump();
    }

    /// Takes no more requests.
    fn close(&mut self) -> bool {
        if mem::replace(&mut self.closing, true) || self.lost.is_some() {
            return false;
        }
        for key in mem::take(&mut self.queue) {
            self.finish(key, Err(Error::lost(Lost::Disconnected)));
        }
        self.wake_keeper();
        true
    }

    /// Ends the connection for everybody.
    fn lose(&mut self, why: Lost) {
        if self.lost.is_some() {
            return;
        }
        let lost = Arc::new(why);
        self.lost = Some(lost.clone());
        self.stream = None;
        self.outbox = Outbox::default();
        self.unflushed = false;
        self.inbox = Vec::new();
        self.queue.clear();
        for key in 0..self.calls.len() {
            if let Phase::Queued(_) | Phase::InFlight(_) = self.calls[key].phase {
                self.finish(key, Err(Error::Lost(lost.clone())));
            }
        }
        let mourners = mem::take(&mut self.mourners);
        self.wakes.extend(mourners);
        self.wake_keeper();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Link")
            .field("transmission", &state.transmission)
            .field("calls", &state.live())
            .field("closing", &state.closing)
            .field("lost", &state.lost)
            .finish_non_exhaustive()
    }
}
