//! Tasks that wait for a change.

use std::{collections::BTreeMap, mem, task::Waker};

/// Wakers, each under a number of its own, so that it is dropped with its future.
///
/// Returned wakers are to be dropped or woken when no lock is held, because a whole task may go
/// with them.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    wakers: BTreeMap<u64, Waker>,
    next: u64,
}

/// A place among the watchers, once it is wanted.
pub(crate) type WatcherId = Option<u64>;

impl Watchers {
    /// Has a task woken at the next change.
    #[must_use]
    pub(crate) fn watch(&mut self, place: &mut WatcherId, waker: &Waker) -> Option<Waker> {
        let own = *place.get_or_insert_with(|| {
            self.next += 1;
            self.next
        });
        match self.wakers.get_mut(&own) {
            Some(old) if old.will_wake(waker) => None,
            Some(old) => Some(mem::replace(old, waker.clone())),
            None => self.wakers.insert(own, waker.clone()),
        }
    }

    /// Leaves a place.
    #[must_use]
    pub(crate) fn leave(&mut self, place: WatcherId) -> Option<Waker> {
        self.wakers.remove(&place?)
    }

    /// Wakers of the tasks that a change concerns.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        mem::take(&mut self.wakers).into_values()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.wakers.len()
    }
}
