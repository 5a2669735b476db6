//! Changes of the same bytes, one after the other.

use crate::link::Link;
use nbd_proto::client::Cookie;
use std::{
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::Instant,
};

/// Ranges that are being changed, or will be, in the order in which they came.
///
/// A change may be in flight when nobody waits for its answer any more, because it was late or
/// belongs to a queue. Whoever is next then waits for that answer at the connection itself, since
/// there may be nobody else who reads there.
#[derive(Debug, Default)]
pub(crate) struct Overlaps {
    state: Mutex<State>,
    /// Wakes those who wait for a thread that has its turn.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    entries: Vec<Entry>,
    /// With so many entries those are looked for that have ended unnoticed.
    crowd: usize,
}

/// So many ranges are no crowd yet.
const FEW: usize = 32;

#[derive(Debug)]
struct Entry {
    number: u64,
    owner: Owner,
    range: Range<u64>,
    /// A thread waits for its turn, or has it.
    held: bool,
    /// Requests in flight that no thread with a turn waits for.
    in_flight: Vec<(Weak<Link>, Cookie)>,
}

/// Whose changes do not wait for each other; each call is by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(u64);

/// A range that nobody else changes.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    overlaps: &'a Overlaps,
    number: u64,
}

/// Whom a change comes after.
enum Before {
    Nobody,
    /// A thread.
    Thread,
    /// The request of an entry.
    Request(u64, Weak<Link>, Cookie),
}

impl Overlaps {
    /// Somebody with several changes that do not wait for each other.
    pub(crate) fn owner(&self) -> Owner {
        Owner(self.lock().number())
    }

    /// Waits until all changes of the same bytes that came before have ended: they were answered,
    /// or their connection is over. `None` if that is too late.
    pub(crate) fn turn(
        &self,
        range: Range<u64>,
        owner: Option<Owner>,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Option<Turn<'_>> {
        let mut state = self.lock();
        let number = state.number();
        let owner = owner.unwrap_or(Owner(number));
        state.thin_out();
        state.entries.push(Entry {
            number,
            owner,
            range,
            held: true,
            in_flight: Vec::new(),
        });
        let turn = Turn {
            overlaps: self,
            number,
        };
        if matches!(state.before(number), Before::Nobody) {
            return Some(turn);
        }
        let deadline = deadline();
        loop {
            match state.before(number) {
                Before::Nobody => return Some(turn),
                Before::Thread => {
                    let Some(woken) = self.wait(state, deadline) else {
                        return None; // the turn needs the lock to end
                    };
                    state = woken;
                }
                Before::Request(entry, link, cookie) => {
                    drop(state);
                    let is_over = |link: Arc<Link>| link.wait_until_answered(cookie, deadline);
                    if !link.upgrade().is_none_or(is_over) {
                        return None;
                    }
                    state = self.lock();
                    state.has_ended(entry, cookie);
                    self.freed.notify_all();
                }
            }
        }
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> Option<MutexGuard<'a, State>> {
        let Some(deadline) = deadline else {
            let woken = self.freed.wait(state);
            return Some(woken.unwrap_or_else(PoisonError::into_inner));
        };
        let left = deadline.checked_duration_since(Instant::now())?;
        let woken = self.freed.wait_timeout(state, left);
        Some(woken.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// The request of somebody with several changes is complete.
    pub(crate) fn ended(&self, owner: Owner, cookie: Cookie) {
        let mut state = self.lock();
        let is_own = |entry: &&Entry| {
            let mut requests = entry.in_flight.iter();
            entry.owner == owner && requests.any(|(_, own)| *own == cookie)
        };
        if let Some(number) = state.entries.iter().find(is_own).map(|entry| entry.number) {
            state.has_ended(number, cookie);
            drop(state);
            self.freed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    const fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn place(&self, number: u64) -> usize {
        self.entries.partition_point(|entry| entry.number < number)
    }

    fn before(&self, number: u64) -> Before {
        let own = self.place(number);
        let Entry { range, owner, .. } = &self.entries[own];
        let in_the_way = |other: &&Entry| {
            let overlaps = other.range.start < range.end && range.start < other.range.end;
            overlaps && other.owner != *owner
        };
        match self.entries[..own].iter().find(in_the_way) {
            None => Before::Nobody,
            Some(entry) => match entry.in_flight.last() {
                Some((link, cookie)) if !entry.held => {
                    Before::Request(entry.number, link.clone(), *cookie)
                }
                _ => Before::Thread,
            },
        }
    }

    /// A request of an entry was answered, or never will be.
    fn has_ended(&mut self, number: u64, cookie: Cookie) {
        let place = self.place(number);
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        if entry.number == number {
            entry.in_flight.retain(|(_, other)| *other != cookie);
            if entry.in_flight.is_empty() && !entry.held {
                self.entries.remove(place);
            }
        }
    }

    /// Forgets requests that have been answered meanwhile, before there are too many of them.
    fn thin_out(&mut self) {
        if self.entries.len() < self.crowd.max(FEW) {
            return;
        }
        self.entries.retain_mut(|entry| {
            entry.in_flight.retain(|(link, cookie)| {
                let link = link.upgrade();
                link.is_some_and(|link| !link.is_answered(*cookie))
            });
            entry.held || !entry.in_flight.is_empty()
        });
        self.crowd = 2 * self.entries.len();
    }
}

impl Turn<'_> {
    /// Leaves the turn to a request that is in flight, until it is answered.
    pub(crate) fn leave_to(&self, link: &Arc<Link>, cookie: Cookie) {
        let mut state = self.overlaps.lock();
        let own = state.place(self.number);
        let entry = &mut state.entries[own];
        entry.in_flight.push((Arc::downgrade(link), cookie));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.overlaps.lock();
        let own = state.place(self.number);
        if state.entries[own].in_flight.is_empty() {
            state.entries.remove(own);
        } else {
            state.entries[own].held = false;
        }
        drop(state);
        self.overlaps.freed.notify_all();
    }
}
