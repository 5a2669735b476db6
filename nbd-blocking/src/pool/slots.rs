//! What there is of the connections that are wanted.

use crate::{Error, Lost, link::Link};
use nbd_io::client::{
    Changes,
    shared::{ConnectionState, Reconnect},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Debug)]
pub(super) struct State {
    pub(super) slots: Vec<Slot>,
    pub(super) status: ConnectionState,
    /// The client wants no connections any more.
    pub(super) closing: bool,
    /// A thread is making a connection.
    pub(super) trying: bool,
    pub(super) changes: Changes,
}

/// One of the connections that are wanted.
#[derive(Debug)]
pub(super) struct Slot {
    phase: Phase,
    /// Since when there is the connection.
    born: Instant,
    /// How often it was tried since one was lost that had lasted.
    attempts: u32,
    /// Until when it is tried.
    deadline: Option<Instant>,
    /// When it is tried next.
    due: Instant,
    /// Why it was lost, or could not be made.
    last: Option<Error>,
}

#[derive(Debug)]
enum Phase {
    Open(Arc<Link>),
    /// It is to be made anew.
    Missing,
    /// It could not be made anew, and is tried again when one is lost that has lasted.
    Resting,
}

impl Slot {
    pub(super) fn new(link: Arc<Link>) -> Self {
        let now = Instant::now();
        Self {
            phase: Phase::Open(link),
            born: now,
            attempts: 0,
            deadline: None,
            due: now,
            last: None,
        }
    }

    pub(super) const fn link(&self) -> Option<&Arc<Link>> {
        match &self.phase {
            Phase::Open(link) => Some(link),
            Phase::Missing | Phase::Resting => None,
        }
    }

    /// When it is to be tried, if it is.
    fn due(&self) -> Option<Instant> {
        matches!(self.phase, Phase::Missing).then_some(self.due)
    }

    pub(super) const fn is_resting(&self) -> bool {
        matches!(self.phase, Phase::Resting)
    }

    pub(super) fn open(&mut self, link: Arc<Link>) {
        self.phase = Phase::Open(link);
        self.born = Instant::now();
    }

    /// The connection was lost. Whether it had lasted. One that has not was no success, or a request
    /// that a server dies of would be sent to it for ever.
    pub(super) fn close(&mut self, policy: &Reconnect, why: Error) -> bool {
        if self.born.elapsed() >= policy.lasting() {
            self.attempts = 0;
            self.deadline = None;
        }
        self.try_on(policy, why);
        self.attempts == 0
    }

    /// One more attempt begins. Its number, and when it is of no use any more: the first after a
    /// time in which nobody wanted a connection may be late.
    pub(super) fn begin(&mut self) -> (u32, Option<Instant>) {
        self.attempts = self.attempts.saturating_add(1);
        let now = Instant::now();
        (
            self.attempts,
            self.deadline.filter(|deadline| *deadline > now),
        )
    }

    /// It has to be tried, again if it was tried before, or is given up.
    pub(super) fn try_on(&mut self, policy: &Reconnect, why: Error) {
        let now = Instant::now();
        if self.deadline.is_none() {
            let limit = policy.time_limit();
            self.deadline = limit.and_then(|limit| now.checked_add(limit));
        }
        let pause = match self.attempts.checked_sub(1) {
            None => Duration::ZERO,
            Some(before) => policy.delay_after(before),
        };
        self.due = now.checked_add(pause).unwrap_or(now);
        self.last = Some(why);
        let late = self.deadline.is_some_and(|deadline| deadline <= self.due);
        self.phase = if late || !policy.allows(self.attempts) {
            Phase::Resting
        } else {
            Phase::Missing
        };
    }

    /// It is of no use to try on.
    pub(super) fn give_up(&mut self, why: Error) {
        self.last = Some(why);
        self.phase = Phase::Resting;
    }

    /// It is tried again after all.
    pub(super) fn revive(&mut self, policy: &Reconnect, why: Error) {
        self.attempts = 0;
        self.deadline = None;
        self.try_on(policy, why);
    }

    fn not_restored(&self) -> Lost {
        let closed = || Error::lost(Lost::Closed);
        Lost::NotRestored {
            attempts: self.attempts,
            source: Arc::new(self.last.clone().unwrap_or_else(closed)),
        }
    }
}

impl State {
    pub(super) fn open(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.slots.iter().filter_map(Slot::link)
    }

    pub(super) fn place(&self, link: &Arc<Link>) -> Option<usize> {
        let mut links = self.slots.iter().map(Slot::link);
        links.position(|open| open.is_some_and(|open| Arc::ptr_eq(open, link)))
    }

    pub(super) const fn is_over(&self) -> bool {
        matches!(self.status, ConnectionState::Over(_))
    }

    /// The connection that is to be tried next, and when.
    pub(super) fn next_due(&self) -> Option<(usize, Instant)> {
        let slots = self.slots.iter().enumerate();
        let due = slots.filter_map(|(index, slot)| Some((index, slot.due()?)));
        due.min_by_key(|(_, due)| *due)
    }

    /// The client is over if there is no connection and none will be made; this is the last one.
    pub(super) fn settle(&mut self, index: usize) {
        if self.slots.iter().all(Slot::is_resting) && !self.is_over() {
            let why = match self.closing {
                true => Lost::Disconnected,
                false => self.slots[index].not_restored(),
            };
            self.status = ConnectionState::Over(Arc::new(why));
        }
    }
}
