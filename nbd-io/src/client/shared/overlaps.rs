//! Changes of the same bytes, one after the other.

use std::{
    future::poll_fn,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

/// Ranges that are being changed, or will be, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Overlaps(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    range: Range<u64>,
    /// Who waits for those before it.
    waker: Option<Waker>,
}

impl Entry {
    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.range.start < range.end && range.start < self.range.end
    }
}

/// A range that nobody else changes.
#[derive(Debug)]
pub(super) struct Turn {
    overlaps: Arc<Overlaps>,
    number: u64,
}

impl Overlaps {
    /// Waits until all changes of the same bytes that came before have ended.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped waits no more, and nobody waits for it.
    pub(super) async fn turn(self: &Arc<Self>, range: Range<u64>) -> Turn {
        let turn = self.enter(range);
        poll_fn(|cx| {
            let mut state = self.lock();
            let own = state.place(turn.number);
            let (before, rest) = state.entries.split_at_mut(own);
            let entry = &mut rest[0];
            if !before.iter().any(|other| other.overlaps(&entry.range)) {
                return Poll::Ready(());
            }
            let old = entry.waker.replace(cx.waker().clone());
            drop(state);
            drop(old);
            Poll::Pending
        })
        .await;
        turn
    }

    fn enter(self: &Arc<Self>, range: Range<u64>) -> Turn {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.entries.push(Entry {
            number,
            range,
            waker: None,
        });
        Turn {
            overlaps: Arc::clone(self),
            number,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn place(&self, number: u64) -> usize {
        self.entries.partition_point(|entry| entry.number < number)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.overlaps.lock();
        let own = state.place(self.number);
        let Entry { range, waker, .. } = state.entries.remove(own);
        let later = state.entries[own..].iter_mut();
        let freed = later.filter(|other| other.overlaps(&range));
        let wakers: Vec<Waker> = freed.filter_map(|other| other.waker.take()).collect();
        drop(state);
        drop(waker);
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::{Pin, pin},
        task::Context,
    };

    fn is_ready(turn: Pin<&mut impl Future<Output = Turn>>) -> Option<Turn> {
        match turn.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[test]
    fn only_what_overlaps_waits_and_in_order() {
        let overlaps = Arc::<Overlaps>::default();
        let mut first = pin!(overlaps.turn(0..10));
        let mut second = pin!(overlaps.turn(5..15));
        let mut third = pin!(overlaps.turn(12..20));
        let mut apart = pin!(overlaps.turn(20..30));
        let held = is_ready(first.as_mut()).unwrap();
        assert!(is_ready(second.as_mut()).is_none());
        // Behind one that waits.
        assert!(is_ready(third.as_mut()).is_none());
        drop(is_ready(apart.as_mut()).unwrap());
        drop(held);
        let held = is_ready(second.as_mut()).unwrap();
        assert!(is_ready(third.as_mut()).is_none());
        drop(held);
        drop(is_ready(third.as_mut()).unwrap());
        assert!(overlaps.lock().entries.is_empty());
    }

    #[test]
    fn who_is_dropped_is_not_waited_for() {
        let overlaps = Arc::<Overlaps>::default();
        let mut first = pin!(overlaps.turn(0..10));
        let _held = is_ready(first.as_mut()).unwrap();
        let mut last = pin!(overlaps.turn(10..20));
        {
            let mut second = Box::pin(overlaps.turn(5..15));
            assert!(is_ready(second.as_mut()).is_none());
            let mut behind = pin!(overlaps.turn(12..13));
            assert!(is_ready(behind.as_mut()).is_none());
            drop(second);
            drop(is_ready(behind.as_mut()).unwrap());
        }
        drop(is_ready(last.as_mut()).unwrap());
        assert_eq!(overlaps.lock().entries.len(), 1);
    }
}
