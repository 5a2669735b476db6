//! The state of a connection: its engine, and the callers that wait.

use super::Done;
use crate::{Error, Lost, range_guard::LeftGuard};
use nbd_io::client::{
    Record,
    engine::{Engine, Inbox, Outbox, Ticket},
};
use nbd_proto::client::{Cookie, Outcome};
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// State of a request until it is answered or given up.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Its entry for the log of changes, to be made when the answer comes.
    pub(super) record: Option<Record>,
    /// The guard of a change that no thread has.
    pub(super) guard: Option<LeftGuard>,
}

impl Ticket for Held {
    fn answered(&mut self, result: &mut Result<Outcome, Error>) {
        if let Some(mut record) = self.record.take() {
            record.answered(result);
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) engine: Engine<Vec<u8>, Held, Caller>,
    /// Number of callers that wait.
    pub(super) waiting: usize,
    /// Number of callers that wait until one more request may be in flight.
    pub(super) wait_for_room: usize,
    /// Number of callers that wait for the answer to a request of another caller.
    pub(super) wait_for_others: usize,
    /// Limit of payload in flight, in bytes; a single request may always be.
    pub(super) max_weight: u64,
    /// Callers that wait until their payload may be in flight, in order.
    pub(super) heavy: VecDeque<usize>,
    /// `None` while a thread reads.
    pub(super) inbox: Option<Inbox>,
    /// The only caller that may read on, because the payload is for its own buffer.
    pub(super) reader: Option<usize>,
    /// An empty outbox to swap for a full one. The thread that writes has it.
    pub(super) spare: Option<Box<Outbox>>,
    pub(super) writing: bool,
    /// Number of callers that wait until they may write.
    pub(super) wait_to_write: usize,
    /// A caller ends the session.
    pub(super) ending: bool,
    /// The stream is closed.
    pub(super) closed: bool,
}

/// The load of a connection on which no request is taken any more.
pub(super) const CLOSED: usize = usize::MAX;

/// The event for which a caller reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitFor {
    /// Something that it waits for is complete.
    Done,
    /// One more request may be in flight.
    Room {
        /// Its payload, in bytes.
        weight: u64,
    },
    /// This request is answered, also if another thread made it.
    Answer(Cookie),
    /// No request is in flight.
    Idle,
    /// The server has ended the stream.
    End,
    /// The bytes that are there have been taken in. This does not wait.
    Nothing,
    /// Like [`Nothing`](WaitFor::Nothing), while nothing is in flight.
    IdleCheck,
}

impl WaitFor {
    /// Whether nothing is waited for.
    pub(super) const fn is_now(self) -> bool {
        matches!(self, Self::Nothing | Self::IdleCheck)
    }
}

/// A thread in a call, or a queue.
#[derive(Debug, Default)]
pub(super) struct Caller {
    pub(super) wake: Arc<Condvar>,
    /// The event that it waits for, if it does.
    pub(super) waits: Option<WaitFor>,
    /// When it has made its request, if it has not waited for anything since.
    pub(super) since: Option<Duration>,
}

impl State {
    pub(super) fn new(engine: Engine<Vec<u8>, Held, Caller>, max_weight: u64) -> Self {
        Self {
            engine,
            waiting: 0,
            wait_for_room: 0,
            wait_for_others: 0,
            max_weight,
            heavy: VecDeque::new(),
            inbox: Some(Inbox::default()),
            reader: None,
            spare: None,
            writing: false,
            wait_to_write: 0,
            ending: false,
            closed: false,
        }
    }

    #[inline]
    pub(super) fn leave(&mut self, place: usize) {
        self.engine.leave(place);
        self.forget_heavy(place);
        let caller = self.engine.owner_mut(place);
        caller.waits = None;
        caller.since = None;
        if self.reader == Some(place) {
            self.reader = None;
        }
        self.pass_on();
    }

    /// Whether one more request may be in flight, with this payload of this caller.
    // Inlined, as its caller is: otherwise each request of a queue costs 80 instructions more.
    #[inline(always)]
    pub(super) fn has_room(&self, place: usize, weight: u64) -> bool {
        let is_light = self.engine.weight() + weight <= self.max_weight;
        self.engine.has_room() && (is_light && self.heavy.is_empty() || self.bears(place, weight))
    }

    /// The same where others wait with payload, or where this one is too heavy beside those in
    /// flight. Requests with payload do not overtake those of others, or these would wait for ever.
    #[cold]
    fn bears(&self, place: usize, weight: u64) -> bool {
        let before = self.engine.weight();
        let fits = before == 0 || before.saturating_add(weight) <= self.max_weight;
        let is_next = self.heavy.front().is_none_or(|first| *first == place);
        weight == 0 || fits && is_next
    }

    /// A caller does not wait for room any more.
    #[inline]
    pub(super) fn forget_heavy(&mut self, place: usize) {
        if !self.heavy.is_empty() {
            self.remove_heavy(place);
        }
    }

    #[cold]
    fn remove_heavy(&mut self, place: usize) {
        self.heavy.retain(|heavy| *heavy != place);
    }

    /// The next completed request of a caller; an error when the connection is over.
    #[inline]
    pub(super) fn take(&mut self, place: usize) -> Result<Option<Done>, Error> {
        let Some(lost) = self.engine.lost() else {
            return Ok(self.engine.take(place));
        };
        let lost = lost.clone();
        match self.engine.take(place) {
            Some(done) if !is_failed_by(&done, &lost) => Ok(Some(done)),
            _ => Err(Error::Lost(lost)),
        }
    }

    /// All completed requests of a caller, for an empty list; an error when there is none and the
    /// connection is over.
    pub(super) fn take_all(
        &mut self,
        place: usize,
        list: &mut VecDeque<Done>,
    ) -> Result<(), Error> {
        self.engine.take_all(place, list);
        let Some(lost) = self.engine.lost() else {
            return Ok(());
        };
        list.retain(|done| !is_failed_by(done, lost));
        match list.is_empty() {
            true => Err(Error::Lost(lost.clone())),
            false => Ok(()),
        }
    }

    /// Whether the server has said that it shuts down, and no caller ends the session by itself.
    pub(super) const fn leaves(&self) -> bool {
        self.engine.is_closing() && !self.ending
    }

    /// Wakes the callers for whom there is something new.
    #[inline]
    pub(super) fn notify(&mut self) {
        // To clear a list takes a while even if it is empty, which this one nearly always is.
        if !self.engine.released().is_empty() {
            self.engine.released().clear();
        }
        while let Some(owner) = self.engine.next_ready() {
            if self.reader == Some(owner) && self.engine.is_done(owner) {
                self.reader = None;
            }
            self.engine.owner(owner).notify();
        }
        if self.wait_for_room > 0 {
            if self.engine.takes_requests() {
                self.wake_for_room();
            } else {
                self.notify_all();
            }
        }
        if self.wait_for_others > 0 {
            for caller in self.engine.owners() {
                if let Some(WaitFor::Answer(cookie)) = caller.waits
                    && self.engine.is_answered(cookie)
                {
                    caller.notify();
                }
            }
        }
    }

    /// Wakes all callers.
    pub(super) fn notify_all(&self) {
        self.engine.owners().for_each(Caller::notify);
    }

    /// Wakes a caller that waits until one more request may be in flight. It wakes the next one.
    #[inline]
    pub(super) fn wake_for_room(&mut self) {
        if self.wait_for_room > 0 && self.engine.has_room() {
            self.wake_first_for_room();
        }
    }

    #[cold]
    fn wake_first_for_room(&mut self) {
        let may_go = |(place, caller): (usize, &Caller)| match caller.waits {
            Some(WaitFor::Room { weight }) if self.has_room(place, weight) => Some(place),
            _ => None,
        };
        let first = self.engine.owners().enumerate().find_map(may_go);
        if let Some(place) = first {
            let caller = self.engine.owner_mut(place);
            // The next one to be woken is another one.
            caller.waits = None;
            self.waiting -= 1;
            self.wait_for_room -= 1;
            caller.wake.notify_one();
        }
    }

    /// Wakes the caller that is to read on, or any that waits.
    #[inline]
    pub(super) fn pass_on(&self) {
        if self.waiting == 0 || self.inbox.is_none() {
            return;
        }
        let next = match self.reader {
            Some(reader) => Some(self.engine.owner(reader)),
            None => self.engine.owners().find(|caller| caller.waits.is_some()),
        };
        if let Some(caller) = next {
            caller.notify();
        }
    }
}

/// Whether a request has failed with the connection, like all that were in flight. That is said once
/// for all of them.
fn is_failed_by(done: &Done, lost: &Arc<Lost>) -> bool {
    matches!(done.reply.error(), Some(Error::Lost(why)) if Arc::ptr_eq(why, lost))
}

impl Caller {
    /// Wakes it if it waits. The system is asked even if no thread does.
    fn notify(&self) {
        if self.waits.is_some() {
            self.wake.notify_one();
        }
    }
}

pub(super) fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

pub(super) fn wait_until<'a>(
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
