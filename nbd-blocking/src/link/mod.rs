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
mod writing;

use crate::{Error, Lost, stream::Stream};
use aside::Aside;
use bytes::Bytes;
use nbd_io::client::Outbox;
use nbd_proto::{
    Command, Header, Misuse,
    client::{Cookie, Outcome, Transmission},
};
use reading::{Inbox, LARGE};
use std::{
    collections::VecDeque,
    mem,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// No request is given less time than this, because to a socket no time means for ever.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

/// The caller of a request that nobody waits for any more.
const NOBODY: usize = usize::MAX;

/// A connection in transmission.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Stream,
    state: Mutex<State>,
    /// Wakes callers whose payload is too large to be left to another writer.
    may_write: Condvar,
    /// How long a request may take.
    timeout: Option<Duration>,
}

#[derive(Debug)]
struct State {
    transmission: Transmission,
    /// What is kept of each request in flight, by the slot of its cookie.
    entries: Vec<Entry>,
    callers: Vec<Caller>,
    free_callers: Vec<usize>,
    /// How many callers wait until one more request may be in flight.
    wait_for_room: usize,
    /// `None` while somebody reads.
    inbox: Option<Inbox>,
    /// The only caller that may read on, because the payload is for its own buffer.
    reader: Option<usize>,
    /// Reads in flight whose payload is worth a system call of its own.
    large: usize,
    outbox: Outbox,
    /// An empty outbox to swap for a full one.
    spare: Outbox,
    writing: bool,
    /// No request is taken any more, because the session is about to end.
    closing: bool,
    /// `NBD_CMD_DISC` is on its way.
    goodbye: bool,
    lost: Option<Arc<Lost>>,
}

/// What a caller reads for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// Something that it waits for is complete.
    Served,
    /// One more request may be in flight.
    Room,
    /// Nothing is in flight.
    Idle,
    /// The server has ended the stream.
    Ended,
    /// Nothing more is there; the only one that does not wait.
    Dry,
}

/// A request in flight.
#[derive(Debug)]
struct Entry {
    cookie: Option<Cookie>,
    command: Command,
    caller: usize,
    deadline: Option<Instant>,
    large: bool,
    sink: Sink,
}

/// Where the payload of a read goes.
#[derive(Debug)]
enum Sink {
    None,
    /// To the caller's own buffer, from this position on.
    Borrowed {
        at: usize,
        aside: Aside,
    },
    /// To a buffer that was handed over.
    Owned(Vec<u8>),
}

/// A thread in a call, or a queue.
#[derive(Debug)]
struct Caller {
    wake: Arc<Condvar>,
    /// What it waits for, if it does.
    waits: Option<Until>,
    done: VecDeque<Done>,
}

/// A request that is complete.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) cookie: Cookie,
    pub(crate) result: Result<Outcome, Error>,
    /// The buffer that was handed over with it.
    pub(crate) buffer: Option<Vec<u8>>,
    aside: Option<(usize, Aside)>,
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
    /// Payload that is handed over.
    Owned(Bytes),
}

enum Payload<'a> {
    Owned(Bytes),
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
        Ok(Self {
            stream,
            state: Mutex::new(State {
                transmission,
                entries: Vec::new(),
                callers: Vec::new(),
                free_callers: Vec::new(),
                wait_for_room: 0,
                inbox: Some(Inbox::new()),
                reader: None,
                large: 0,
                outbox: Outbox::default(),
                spare: Outbox::default(),
                writing: false,
                closing: false,
                goodbye: false,
                lost: None,
            }),
            may_write: Condvar::new(),
            timeout,
        })
    }

    /// Looks at the protocol's side of the connection.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&Transmission) -> R) -> R {
        look(&self.lock().transmission)
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
        let mut state = self.lock();
        state.free_callers.pop().unwrap_or_else(|| {
            state.callers.push(Caller {
                wake: Arc::default(),
                waits: None,
                done: VecDeque::new(),
            });
            state.callers.len() - 1
        })
    }

    /// Gives a place back. Requests that were made from it and are not complete are abandoned.
    pub(crate) fn leave(&self, place: usize) {
        let mut state = self.lock();
        for slot in 0..state.entries.len() {
            if state.entries[slot].caller == place
                && let Some(cookie) = state.entries[slot].cookie
            {
                state.abandon(cookie);
            }
        }
        state.callers[place].done.clear();
        state.callers[place].waits = None;
        state.free_callers.push(place);
        state.pass_on();
    }

    /// Makes a request, once there is room for one more in flight. Its frame may wait in the
    /// outbox until somebody waits or [`flush`](Link::flush)es, unless it has a borrowed payload.
    pub(crate) fn submit(
        &self,
        place: usize,
        command: Command,
        load: Load<'_>,
        dest: &mut [u8],
        frame: impl FnOnce(&mut Transmission) -> Result<(Cookie, Header), Misuse>,
    ) -> Result<Cookie, Error> {
        self.submit_with_payload(place, command, load, dest, |transmission| {
            frame(transmission).map(|(cookie, header)| (cookie, header, Bytes::new()))
        })
    }

    /// Makes a request that has a payload of the protocol's own.
    pub(crate) fn submit_with_payload(
        &self,
        place: usize,
        command: Command,
        load: Load<'_>,
        dest: &mut [u8],
        frame: impl FnOnce(&mut Transmission) -> Result<(Cookie, Header, Bytes), Misuse>,
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
            Load::Owned(payload) => (Sink::None, Some(Payload::Owned(payload))),
            Load::Borrowed(payload) => (Sink::None, Some(Payload::Borrowed(payload))),
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
        match payload {
            None => state.outbox.push_copied(header.as_bytes(), &own),
            Some(Payload::Owned(payload)) => state.outbox.push_owned(header.as_bytes(), payload),
            Some(Payload::Borrowed(payload)) => {
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
        while state.lost.is_none() && !state.closing && !state.transmission.has_room() {
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
            None if state.closing => Err(Error::lost(Lost::Disconnected)),
            None => Ok(state),
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

impl State {
    /// The entry of a request.
    fn entry(&mut self, cookie: Cookie) -> &mut Entry {
        let slot = cookie.slot();
        if self.entries.len() <= slot {
            self.entries.resize_with(slot + 1, || Entry {
                cookie: None,
                command: Command::Disc,
                caller: NOBODY,
                deadline: None,
                large: false,
                sink: Sink::None,
            });
        }
        &mut self.entries[slot]
    }

    /// Reports a request as complete to whoever waits for it.
    fn complete(&mut self, cookie: Cookie, result: Result<Outcome, Error>) {
        let entry = &mut self.entries[cookie.slot()];
        entry.cookie = None;
        self.large -= usize::from(entry.large);
        let caller = mem::replace(&mut entry.caller, NOBODY);
        let (buffer, aside) = match mem::replace(&mut entry.sink, Sink::None) {
            Sink::None => (None, None),
            Sink::Owned(buffer) => (Some(buffer), None),
            Sink::Borrowed { aside, .. } if aside.is_empty() => (None, None),
            Sink::Borrowed { at, aside } => (None, Some((at, aside))),
        };
        if let Some(caller) = self.callers.get_mut(caller) {
            caller.done.push_back(Done {
                cookie,
                result,
                buffer,
                aside,
            });
            if caller.waits.is_some() {
                caller.wake.notify_one();
            }
        }
        self.wake_for_room();
    }

    /// Wakes a caller that waits until one more request may be in flight.
    fn wake_for_room(&mut self) {
        if self.wait_for_room > 0
            && let Some(caller) = self
                .callers
                .iter_mut()
                .find(|caller| caller.waits == Some(Until::Room))
        {
            // The next one to be woken is another one.
            caller.waits = None;
            self.wait_for_room -= 1;
            caller.wake.notify_one();
        }
    }

    /// Gives up a request: its reply is read and thrown away when it comes.
    fn abandon(&mut self, cookie: Cookie) {
        self.transmission.abandon(cookie);
        let entry = &mut self.entries[cookie.slot()];
        if self.reader == Some(entry.caller) {
            self.reader = None;
        }
        entry.caller = NOBODY;
        entry.sink = Sink::None;
    }

    /// Ends the connection for everybody.
    fn lose(&mut self, why: Lost) {
        if self.lost.is_none() {
            self.lost = Some(Arc::new(why));
        }
        for caller in &self.callers {
            caller.wake.notify_all();
        }
    }

    /// Wakes the caller that is to read on, or any that waits.
    fn pass_on(&self) {
        if self.inbox.is_none() {
            return;
        }
        let next = match self.reader {
            Some(reader) => self.callers.get(reader),
            None => self.callers.iter().find(|caller| caller.waits.is_some()),
        };
        if let Some(caller) = next {
            caller.wake.notify_one();
        }
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

/// A frame's header; the payload, if there is one, goes its own way.
pub(crate) fn header<P>(
    request: Result<(Cookie, nbd_proto::Frame<P>), Misuse>,
) -> Result<(Cookie, Header), Misuse> {
    request.map(|(cookie, frame)| (cookie, frame.into_parts().0))
}
