//! One connection that many threads use at once, without a thread of its own.
//!
//! ```text
//!  caller ── submit ──▶ outbox ── the writing thread takes all of it ──▶ stream
//!  caller ◀── done ──── engine ◀── the reading thread serves all ── inbox ◀── stream
//! ```
//!
//! The [`Engine`] decides which requests are in flight and late, and whose payload goes where; this
//! module decides which thread reads, writes or waits.
//!
//! **Reading.** Callers that wait are a leader and its followers. The leader has the inbox: it reads
//! from the stream and hands out all replies, until its own reply is complete; then another caller
//! that waits becomes the leader. Payload beyond the bytes in the inbox goes straight from the stream
//! to its buffer. If that buffer is lent by another thread, that thread becomes the leader, because
//! no other may touch it; its bytes that are in the inbox already are left with the reply for its
//! owner to copy.
//!
//! **Writing.** Frames are put into the outbox. A caller that finds no other writing swaps the
//! outbox for an empty one and writes it; the others leave their frames to it. A large payload
//! that is borrowed is written by its owner. The frame of a lone caller does not go through the
//! outbox if that is empty: it is written from where it is. A writer that cannot go on reads
//! meanwhile, because a server that waits for its replies to be taken takes no requests.
//!
//! **Waiting.** A caller that reads waits in the system for at most [`READ_IN_SYSTEM`] at once, and by
//! `poll` when the first request is late sooner. A lone caller that is answered therefore makes
//! two system calls and reads the clock once.
//!
//! A stream of a program's own can do one thing at a time: no caller waits for a reply on it before
//! the request is written.
//!
//! The lock on [`State`] is never held while the stream is waited for.

mod call;
mod disconnect;
mod reading;
mod table;
mod writing;

use crate::{
    Error, Lost,
    range_guard::LeftGuard,
    stream::{READ_IN_SYSTEM, Stream},
};
pub(crate) use call::Call;
pub(crate) use disconnect::disconnect_deadline;
use nbd_io::client::{
    LinkLog, Record,
    engine::{self, Engine},
};
use nbd_proto::{
    Command,
    client::{Cookie, Outcome, Transmission},
};
use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use table::{CLOSED, State, WaitFor, is_past, wait_until};

/// No request is given less time than this, because to a socket no time means for ever.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

/// A request that is complete.
pub(crate) type Done = engine::Done<Vec<u8>>;

/// Limits for the requests of a connection.
pub(crate) struct LinkLimits {
    /// Time limit of a request.
    pub(crate) timeout: Option<Duration>,
    /// Limit of payload in flight, in bytes; a single request may always be.
    pub(crate) bytes_in_flight: u64,
    /// Whether a late request ends the connection if nothing was received since it was sent.
    pub(crate) lose_when_silent: bool,
}

/// A connection in transmission.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Stream,
    state: Mutex<State>,
    /// Wakes callers whose payload is too large to be left to another writer.
    may_write: Condvar,
    load: AtomicUsize,
    /// Time limit of a request.
    timeout: Option<Duration>,
    /// Zero of the engine's time.
    start: Instant,
    /// The log of changes, if the client has one.
    log: Option<LinkLog>,
}

/// The place of a thread among the callers.
#[derive(Debug)]
pub(crate) struct CallerId<'a> {
    link: &'a Link,
    index: usize,
}

/// The outcome of a request, or an error, with the request's cookie if it was in flight.
pub(crate) type Answer = Result<Outcome, (Error, Option<Cookie>)>;

impl Link {
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
        } = limits;
        let timeout = timeout.map(|timeout| timeout.max(SHORTEST_TIMEOUT));
        Self {
            stream,
            state: Mutex::new(State::new(
                Engine::new(transmission, timeout, lose_when_silent),
                bytes_in_flight,
            )),
            may_write: Condvar::new(),
            load: AtomicUsize::new(0),
            timeout,
            start: Instant::now(),
            log,
        }
    }

    /// The log of changes, if the client has one.
    pub(crate) const fn log(&self) -> Option<&LinkLog> {
        self.log.as_ref()
    }

    /// Number of requests in flight; `None` if no more are taken.
    pub(crate) fn load(&self) -> Option<usize> {
        let load = self.load.load(Ordering::Relaxed);
        (load != CLOSED).then_some(load)
    }

    /// Ends the connection at once.
    pub(crate) fn abort(&self, why: Lost) {
        self.lose(&mut self.lock(), why);
    }

    /// Whether the connection is over, and why.
    pub(crate) fn lost(&self) -> Option<Arc<Lost>> {
        self.lock().engine.lost().cloned()
    }

    /// Takes a place from which requests can be made.
    pub(crate) fn place(&self) -> CallerId<'_> {
        CallerId {
            link: self,
            index: self.enter(),
        }
    }

    pub(crate) fn enter(&self) -> usize {
        self.lock().engine.enter()
    }

    /// Gives a place back. Requests that were made from it and are not complete are abandoned.
    pub(crate) fn leave(&self, place: usize) {
        let mut state = self.lock();
        state.leave(place);
        self.leave_server(&mut state);
    }

    /// Makes a request, once there is room for one more in flight. Its frame may wait in the
    /// outbox until a caller waits or [`flush`](Link::flush)es, unless it has a borrowed payload.
    /// Its answer is recorded, whichever thread waits for it.
    #[inline]
    pub(crate) fn submit(
        &self,
        place: usize,
        call: Call<'_>,
        dest: &mut [u8],
        mut record: Option<Record>,
    ) -> Result<Cookie, Error> {
        let state = self.lock();
        let (_state, cookie) = self.submit_locked(state, place, call, dest, &mut record, false)?;
        Ok(cookie)
    }

    /// One request and its reply, from a place of its own.
    pub(crate) fn call(&self, call: Call<'_>, dest: &mut [u8]) -> Answer {
        let mut state = self.lock();
        let place = state.engine.enter();
        match self.submit_locked(state, place, call, dest, &mut None, true) {
            Ok((state, cookie)) => self.answer(state, place, cookie, dest),
            Err(error) => {
                self.leave(place);
                Err((error, None))
            }
        }
    }

    /// The reply to the only request of a place, which is given back.
    fn answer<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        place: usize,
        cookie: Cookie,
        dest: &mut [u8],
    ) -> Answer {
        let mut state = match self.wait_locked(state, place, dest) {
            Ok(state) => state,
            Err(error) => {
                self.leave(place);
                return Err((error, Some(cookie)));
            }
        };
        let done = state.take(place);
        state.leave(place);
        drop(state);
        let failed = |error| (error, Some(cookie));
        let mut done = done
            .map_err(failed)?
            .expect("a caller waits until it is served");
        done.settle(dest);
        done.reply.into_result().map_err(failed)
    }

    // Inlined, because the kind of call is known where it is made.
    #[inline(always)]
    fn submit_locked<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        place: usize,
        call: Call<'_>,
        dest: &mut [u8],
        record: &mut Option<Record>,
        alone: bool,
    ) -> Result<(MutexGuard<'a, State>, Cookie), Error> {
        let mut state = state;
        let weight = call.weight();
        if !state.engine.takes_requests() || !state.has_room(place, weight) {
            state = self.room(state, (call.command(), weight), place, dest)?;
        }
        // The time of a frame that waits in the outbox begins when that is written.
        let now = (alone || call.has_own_frame()).then(|| self.now());
        state.engine.owner_mut(place).since = now.filter(|_| alone);
        let (begun, own) = call.begin(&mut state.engine, now, place, alone);
        // If there is still room, or if this caller makes no use of it.
        state.wake_for_room();
        let cookie = begun?;
        if record.is_some()
            && let Some(held) = state.engine.ticket(cookie)
        {
            held.get_or_insert_default().record = record.take();
        }
        self.note_load(&state);
        if let Some((header, payload)) = own {
            let own = writing::Own {
                header: header.as_bytes(),
                payload,
                limit: now
                    .zip(self.timeout)
                    .map(|(now, timeout)| now.saturating_add(timeout)),
            };
            state = match self.write(state, place, dest, own) {
                Ok(state) => state,
                Err(error) => {
                    // A server may refuse a write without taking its payload.
                    let state = self.lock();
                    if !state.engine.has_refused(place) {
                        return Err(error);
                    }
                    state
                }
            };
        }
        Ok((state, cookie))
    }

    /// Waits until one more request may be in flight, with this payload.
    #[cold]
    fn room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        (command, weight): (Command, u64),
        place: usize,
        dest: &mut [u8],
    ) -> Result<MutexGuard<'a, State>, Error> {
        let deadline = self.deadline();
        let mut waited = false;
        while state.engine.takes_requests() && !state.has_room(place, weight) {
            if let Some(after) = self.timeout
                && waited
                && is_past(deadline)
            {
                state.forget_heavy(place);
                state.wake_for_room();
                state.pass_on();
                return Err(Error::Timeout { command, after });
            }
            if weight > 0 && state.engine.has_room() && !state.heavy.contains(&place) {
                state.heavy.push_back(place);
            }
            waited = true;
            state = self.step(state, place, dest, WaitFor::Room { weight }, deadline)?;
        }
        state.forget_heavy(place);
        if waited {
            // This caller may have been woken up to read and does not know when it will.
            state.pass_on();
        }
        match state.engine.takes_requests() {
            true => Ok(state),
            false => Err(state.engine.over()),
        }
    }

    /// Sends the frames in the outbox.
    pub(crate) fn flush(&self, place: usize) -> Result<(), Error> {
        let state = self.lock();
        if state.engine.has_output() {
            drop(self.write(state, place, &mut [], writing::Own::default())?);
        }
        Ok(())
    }

    /// Waits for a request of this place to be complete; `dest` is where [`Load::Into`] points.
    pub(crate) fn wait(&self, place: usize, dest: &mut [u8]) -> Result<Done, Error> {
        let mut state = self.wait_locked(self.lock(), place, dest)?;
        let done = state.take(place)?;
        drop(state);
        let mut done = done.expect("a caller waits until it is served");
        done.settle(dest);
        Ok(done)
    }

    /// Waits until a request of this place is complete, or the connection is over.
    fn wait_locked<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        place: usize,
        dest: &mut [u8],
    ) -> Result<MutexGuard<'a, State>, Error> {
        loop {
            if state.engine.is_done(place) {
                state.pass_on();
                return Ok(state);
            }
            if let Some(lost) = state.engine.lost() {
                return Err(Error::Lost(lost.clone()));
            }
            state = self.step(state, place, dest, WaitFor::Done, None)?;
        }
    }

    /// Waits until a request of this place is complete, and takes all that are.
    pub(crate) fn wait_all(&self, place: usize, list: &mut VecDeque<Done>) -> Result<(), Error> {
        let mut state = self.wait_locked(self.lock(), place, &mut [])?;
        state.take_all(place, list)
    }

    /// Takes the completed requests of this place that are ready or can be read without waiting.
    pub(crate) fn poll_all(&self, place: usize, list: &mut VecDeque<Done>) -> Result<(), Error> {
        let mut state = self.lock();
        if !state.engine.is_done(place) && state.engine.lost().is_none() {
            state = self.step(state, place, &mut [], WaitFor::Nothing, None)?;
        }
        state.take_all(place, list)
    }

    /// Like [`wait`](Link::wait), for a request with nothing to read; `None` if it is not complete
    /// by then.
    pub(crate) fn wait_by(
        &self,
        place: usize,
        cookie: Cookie,
        by: Instant,
    ) -> Result<Option<Done>, Error> {
        let mut state = self.lock();
        loop {
            if let Some(done) = state.take(place)? {
                state.pass_on();
                return Ok(Some(done));
            }
            if is_past(Some(by)) {
                return Ok(None);
            }
            let until = WaitFor::Answer(cookie);
            state = self.step(state, place, &mut [], until, Some(by))?;
        }
    }

    /// Takes in bytes that have come while nothing is in flight: if any, the end of the stream.
    /// Does not wait.
    pub(crate) fn check_idle(&self) {
        if self.stream.is_half_duplex() || self.load() != Some(0) {
            return;
        }
        let place = self.place();
        let mut state = self.lock();
        if state.engine.lost().is_none()
            && let Some(inbox) = state.inbox.take()
        {
            let until = WaitFor::IdleCheck;
            let (state, _) = self.read(state, inbox, place.index, &mut [], until, None);
            drop(state);
        }
    }

    /// Leaves a guard to a request until it is answered, or cannot be any more.
    pub(crate) fn leave_guard(&self, guard: LeftGuard, cookie: Cookie) {
        if let Some(held) = self.lock().engine.ticket(cookie) {
            held.get_or_insert_default().guard = Some(guard);
        }
    }

    /// Waits until a request is answered that is not this caller's, or cannot be any more. Whether
    /// that is so by the deadline.
    pub(crate) fn wait_until_answered(&self, cookie: Cookie, deadline: Option<Instant>) -> bool {
        let place = self.place();
        let mut state = self.lock();
        loop {
            let over = state.engine.is_answered(cookie);
            if over || is_past(deadline) {
                return over;
            }
            let until = WaitFor::Answer(cookie);
            match self.step(state, place.index, &mut [], until, deadline) {
                Ok(next) => state = next,
                Err(_) => return true,
            }
        }
    }

    /// When a request that is made now has taken too long.
    fn deadline(&self) -> Option<Instant> {
        self.timeout
            .and_then(|timeout| Instant::now().checked_add(timeout))
    }

    /// The engine's time.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// A deadline in the engine's time.
    fn time(&self, deadline: Option<Instant>) -> Option<Duration> {
        deadline.map(|deadline| deadline.saturating_duration_since(self.start))
    }

    /// When the engine's time is this, unless that is too far away.
    fn at(&self, time: Duration) -> Option<Instant> {
        self.start.checked_add(time)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection for all callers.
    fn lose(&self, state: &mut State, why: Lost) {
        state.engine.lose(why);
        self.settle(state);
    }

    /// Acts on the engine's state after bytes were taken in: callers are woken, and a connection
    /// that is over is closed.
    #[inline]
    fn settle(&self, state: &mut State) {
        state.notify();
        self.note_load(state);
        if state.engine.lost().is_some() {
            state.notify_all();
            if !mem::replace(&mut state.closed, true) {
                self.stream.close();
            }
        }
    }

    fn note_load(&self, state: &State) {
        let load = match state.engine.takes_requests() {
            true => state.engine.in_flight(),
            false => CLOSED,
        };
        self.load.store(load, Ordering::Relaxed);
    }
}

impl CallerId<'_> {
    pub(crate) const fn index(&self) -> usize {
        self.index
    }
}

impl Drop for CallerId<'_> {
    fn drop(&mut self) {
        self.link.leave(self.index);
    }
}
