//! One connection that many threads use at once, without a thread of its own.
//!
//! ```text
//!  caller ── submit ──▶ Outbox ── whoever writes takes all that is there ──▶ stream
//!  caller ◀── done ──── State ◀── whoever reads serves everybody ── Inbox ◀── stream
//! ```
//!
//! **Reading.** The inbox is a baton: a caller that waits for a reply takes it, reads from the
//! stream and hands out whatever comes, until its own reply is complete; then it passes the baton
//! to another caller that waits. Payload that is longer than what the inbox holds goes straight
//! from the stream to its buffer. If that buffer is borrowed by another thread, the baton goes to
//! that thread, because nobody else may touch it; what is in the inbox already is left with the
//! reply for its owner to copy.
//!
//! **Writing.** Frames are put into the outbox. A caller that finds nobody writing swaps the
//! outbox for an empty one and writes it; the others leave their frames to it. A large payload
//! that is borrowed is written by its owner. A writer that cannot go on reads meanwhile, because
//! a server that waits for its replies to be taken takes no requests.
//!
//! A stream of a program's own can do one thing at a time: nobody waits for a reply on it before
//! the request is written.
//!
//! The lock on [`State`] is never held while the stream is waited for.

mod aside;
mod farewell;
mod reading;
mod table;
mod writing;

use crate::{Error, Lost, stream::Stream};
use aside::Aside;
use bytes::Bytes;
pub(crate) use farewell::farewell;
use nbd_proto::{
    Command, Header, Misuse,
    client::{Cookie, Transmission},
};
use reading::LARGE;
use std::{
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
pub(crate) use table::Done;
use table::{CLOSED, Entry, Sink, State, Until};

/// No request is given less time than this, because to a socket no time means for ever.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

/// A connection in transmission.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Stream,
    state: Mutex<State>,
    /// Wakes callers whose payload is too large to be left to another writer.
    may_write: Condvar,
    load: Arc<AtomicUsize>,
    /// How long a request may take.
    timeout: Option<Duration>,
}

/// The place of a thread or a queue among the callers.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    link: &'a Link,
    index: usize,
}

/// What a request takes with it.
pub(crate) enum Load<'a> {
    Nothing,
    /// Payload for this part of the caller's buffer.
    Into(Range<usize>),
    /// Payload for a buffer that is handed over.
    Fill(Vec<u8>),
    /// Payload of the caller's.
    Borrowed(&'a [u8]),
}

impl Link {
    pub(crate) fn new(
        stream: Stream,
        transmission: Transmission,
        timeout: Option<Duration>,
    ) -> Result<Self, Error> {
        let timeout = timeout.map(|timeout| timeout.max(SHORTEST_TIMEOUT));
        stream.set_patience(timeout).map_err(Error::lost)?;
        let state = State::new(transmission);
        Ok(Self {
            stream,
            load: state.load.clone(),
            state: Mutex::new(state),
            may_write: Condvar::new(),
            timeout,
        })
    }

    /// How many requests are in flight; `None` if none is taken any more.
    pub(crate) fn load(&self) -> Option<usize> {
        let load = self.load.load(Ordering::Relaxed);
        (load != CLOSED).then_some(load)
    }

    /// Ends the connection at once.
    pub(crate) fn abort(&self, why: Lost) {
        self.lock().lose(why);
        self.stream.close();
    }

    /// Whether the connection is over, and why.
    pub(crate) fn lost(&self) -> Option<Arc<Lost>> {
        self.lock().lost.clone()
    }

    /// Takes a place from which requests can be made.
    pub(crate) fn place(&self) -> Place<'_> {
        Place {
            link: self,
            index: self.enter(),
        }
    }

    pub(crate) fn enter(&self) -> usize {
        self.lock().enter()
    }

    /// Gives a place back. Requests that were made from it and are not complete are abandoned.
    pub(crate) fn leave(&self, place: usize) {
        let mut state = self.lock();
        state.leave(place);
        if state.may_leave() {
            drop(state);
            self.leave_if_idle();
        }
    }

    /// Makes a request, once there is room for one more in flight. Its frame may wait in the
    /// outbox until somebody waits or [`flush`](Link::flush)es, unless it has a borrowed payload.
    pub(crate) fn submit(
        &self,
        place: usize,
        command: Command,
        load: Load<'_>,
        dest: &mut [u8],
        frame: impl FnOnce(&mut Transmission) -> Result<Framed, Misuse>,
    ) -> Result<Cookie, Error> {
        let mut state = self.room(command, place, dest)?;
        let (cookie, header, own) = match frame(&mut state.transmission) {
            Ok(framed) => framed,
            Err(misuse) => {
                // The room that this caller may have been woken for is somebody else's.
                state.wake_for_room();
                return Err(misuse.into());
            }
        };
        let deadline = self.deadline();
        let mut large = false;
        let (sink, payload) = match load {
            Load::Nothing => (Sink::None, None),
            Load::Into(range) => {
                large = range.len() >= LARGE;
                let (at, aside) = (range.start, Aside::default());
                (Sink::Borrowed { at, aside }, None)
            }
            Load::Fill(buffer) => {
                large = buffer.len() >= LARGE;
                (Sink::Owned(buffer), None)
            }
            Load::Borrowed(payload) => (Sink::None, Some(payload)),
        };
        *state.entry(cookie) = Entry {
            cookie: Some(cookie),
            command,
            caller: place,
            deadline,
            large,
            sink,
        };
        state.large += usize::from(large);
        state.note_load();
        match payload {
            None => state.outbox.push_owned(header.as_bytes(), own),
            Some(payload) => {
                self.write(state, place, dest, header.as_bytes(), payload, None)?;
                // The server can answer from now on.
                let deadline = self.deadline();
                let mut state = self.lock();
                let entry = state.entry(cookie);
                if entry.cookie == Some(cookie) {
                    entry.deadline = deadline;
                }
            }
        }
        Ok(cookie)
    }

    /// Waits until one more request may be in flight.
    fn room(
        &self,
        command: Command,
        place: usize,
        dest: &mut [u8],
    ) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.lock();
        let mut deadline = None;
        let mut waited = false;
        while state.takes_requests() && !state.transmission.has_room() {
            if !waited {
                waited = true;
                deadline = self.deadline();
            } else if let Some(after) = self.timeout
                && is_past(deadline)
            {
                state.pass_on();
                return Err(Error::Timeout { command, after });
            }
            state = self.turn(state, place, dest, Until::Room, deadline)?;
        }
        if waited {
            // This caller may have been woken up to read and does not know when it will.
            state.pass_on();
        }
        match &state.lost {
            Some(lost) => Err(Error::Lost(lost.clone())),
            None if state.takes_requests() => Ok(state),
            None => Err(Error::lost(Lost::Disconnected)),
        }
    }

    /// Sends what waits in the outbox.
    pub(crate) fn flush(&self, place: usize) -> Result<(), Error> {
        let state = self.lock();
        if state.outbox.is_empty() {
            Ok(())
        } else {
            self.write(state, place, &mut [], &[], &[], None)
        }
    }

    /// Waits for a request of this place to be complete; `dest` is where [`Load::Into`] points.
    pub(crate) fn wait(&self, place: usize, dest: &mut [u8]) -> Result<Done, Error> {
        let mut state = self.lock();
        loop {
            if let Some(mut done) = state.callers[place].done.pop_front() {
                state.pass_on();
                drop(state);
                if let Some((at, aside)) = done.aside.take() {
                    aside.copy_to(&mut dest[at..]);
                }
                return Ok(done);
            }
            if let Some(lost) = &state.lost {
                return Err(Error::Lost(lost.clone()));
            }
            state = self.turn(state, place, dest, Until::Served, None)?;
        }
    }

    /// A completed request of this place, if one is ready or can be read without waiting.
    pub(crate) fn poll(&self, place: usize) -> Result<Option<Done>, Error> {
        let mut state = self.lock();
        if state.callers[place].done.is_empty() && state.lost.is_none() {
            state = self.turn(state, place, &mut [], Until::Dry, None)?;
        }
        match (state.callers[place].done.pop_front(), &state.lost) {
            (None, Some(lost)) => Err(Error::Lost(lost.clone())),
            (done, _) => Ok(done),
        }
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
            if let Some(done) = state.callers[place].done.pop_front() {
                state.pass_on();
                return Ok(Some(done));
            }
            if let Some(lost) = &state.lost {
                return Err(Error::Lost(lost.clone()));
            }
            if is_past(Some(by)) {
                return Ok(None);
            }
            let until = Until::Answered(cookie);
            state = self.turn(state, place, &mut [], until, Some(by))?;
        }
    }

    /// Takes in what has come while nothing is in flight, which is the end if anything. Nothing is
    /// waited for.
    pub(crate) fn look(&self) {
        if self.stream.is_half_duplex() || self.load() != Some(0) {
            return;
        }
        let place = self.place();
        let mut state = self.lock();
        if state.lost.is_none()
            && let Some(inbox) = state.inbox.take()
        {
            let (state, _) = self.read(state, inbox, place.index, &mut [], Until::Look, None);
            drop(state);
        }
    }

    /// Whether a request has been answered, or cannot be any more.
    pub(crate) fn is_answered(&self, cookie: Cookie) -> bool {
        let state = self.lock();
        state.lost.is_some() || state.is_answered(cookie)
    }

    /// Waits until a request is answered that is not this caller's, or cannot be any more. Whether
    /// that is so by the deadline.
    pub(crate) fn wait_until_answered(&self, cookie: Cookie, deadline: Option<Instant>) -> bool {
        let place = self.place();
        let mut state = self.lock();
        loop {
            let over = state.lost.is_some() || state.is_answered(cookie);
            if over || is_past(deadline) {
                return over;
            }
            let until = Until::Answered(cookie);
            match self.turn(state, place.index, &mut [], until, deadline) {
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    pub(crate) const fn index(&self) -> usize {
        self.index
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.link.leave(self.index);
    }
}

fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

fn wait_until<'a>(
    condvar: &Condvar,
    state: MutexGuard<'a, State>,
    deadline: Option<Instant>,
) -> MutexGuard<'a, State> {
    match deadline {
        None => condvar.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = condvar.wait_timeout(state, left);
            waited.unwrap_or_else(PoisonError::into_inner).0
        }
    }
}

/// A request in flight, and what has to be sent of it: the header, and a payload unless that goes
/// its own way.
pub(crate) type Framed = (Cookie, Header, Bytes);

/// A frame whose payload, if there is one, goes its own way.
pub(crate) fn header<P>(
    request: Result<(Cookie, nbd_proto::Frame<P>), Misuse>,
) -> Result<Framed, Misuse> {
    request.map(|(cookie, frame)| (cookie, frame.into_parts().0, Bytes::new()))
}
