//! Tasks that wait for a change.

use std::task::Waker;

/// Wakers, each under a number of its own, so that one whose future was dropped is forgotten.
///
/// What is returned is to be dropped or woken when no lock is held, because a whole task may go with it.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    wakers: Vec<(u64, Waker)>,
    next: u64,
}

/// A place among the watchers, once it is wanted.
pub(super) type Place = Option<u64>;

impl Watchers {
    /// Has a task woken at the next change.
    #[must_use]
    pub(super) fn watch(&mut self, place: &mut Place, waker: &Waker) -> Option<Waker> {
        let own = *place.get_or_insert_with(|| {
            self.next += 1;
            self.next
        });
        match self.wakers.iter_mut().find(|(number, _)| *number == own) {
            Some((_, old)) if old.will_wake(waker) => None,
            Some((_, old)) => Some(std::mem::replace(old, waker.clone())),
            None => {
                self.wakers.push((own, waker.clone()));
                None
            }
        }
    }

    /// Leaves a place.
    #[must_use]
    pub(super) fn leave(&mut self, place: Place) -> Option<Waker> {
        let own = place?;
        let at = self.wakers.iter().position(|(number, _)| *number == own)?;
        Some(self.wakers.swap_remove(at).1)
    }

    /// Whom a change concerns.
    #[must_use]
    pub(super) fn take(&mut self) -> Vec<(u64, Waker)> {
        std::mem::take(&mut self.wakers)
    }

    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.wakers.len()
    }
}
