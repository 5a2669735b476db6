//! Tasks that wait for a change.

use std::{mem, task::Waker};

/// Wakers, each at a place of its own, so that it is dropped with its future.
///
/// Returned wakers are to be dropped or woken when no lock is held, because a whole task may go
/// with them.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    wakers: Vec<Option<Waker>>,
    /// Places without a waker.
    free: Vec<usize>,
    /// Number of changes. Places of before the last one are not there any more.
    changes: u64,
}

/// A place among the watchers, once it is wanted, and the number of changes before.
pub(crate) type WatcherId = Option<(u64, usize)>;

impl Watchers {
    /// Has a task woken at the next change.
    #[must_use]
    pub(crate) fn watch(&mut self, id: &mut WatcherId, waker: &Waker) -> Option<Waker> {
        let place = match *id {
            Some((changes, place)) if changes == self.changes => place,
            _ => {
                let place = self.free.pop().unwrap_or(self.wakers.len());
                if place == self.wakers.len() {
                    self.wakers.push(None);
                }
                *id = Some((self.changes, place));
                place
            }
        };
        match &mut self.wakers[place] {
            Some(old) if old.will_wake(waker) => None,
            kept => kept.replace(waker.clone()),
        }
    }

    /// Leaves a place.
    #[must_use]
    pub(crate) fn leave(&mut self, id: WatcherId) -> Option<Waker> {
        let (changes, place) = id?;
        if changes != self.changes {
            return None;
        }
        self.free.push(place);
        self.wakers[place].take()
    }

    /// Wakers of the tasks that a change concerns.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        self.changes += 1;
        self.free.clear();
        mem::take(&mut self.wakers).into_iter().flatten()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.wakers.iter().flatten().count()
    }
}
