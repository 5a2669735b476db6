//! Changes of the same bytes, one after the other, for tasks.

use crate::client::{Claim, RangeLocks};
use std::{
    future::poll_fn,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
};

/// Ranges that are being changed, or will be, and who waits for each.
#[derive(Debug, Default)]
pub(super) struct SharedRangeLocks(Mutex<RangeLocks<Option<Waker>>>);

/// A range that no other change may touch, until this is dropped or the change is answered.
#[derive(Debug)]
pub(super) struct RangeGuard {
    range_locks: Arc<SharedRangeLocks>,
    claim: Claim,
    outlasts_answer: AtomicBool,
    has_ended: AtomicBool,
}

impl SharedRangeLocks {
    /// Waits until all changes of the same bytes that came before have ended.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped waits no more, and no other change waits for it.
    pub(super) async fn lock_range(self: &Arc<Self>, range: Range<u64>) -> RangeGuard {
        let guard = RangeGuard {
            claim: self.lock().enter(range, None, None),
            range_locks: self.clone(),
            outlasts_answer: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        };
        poll_fn(|cx| {
            let mut locks = self.lock();
            if locks.is_held(guard.claim) {
                return Poll::Ready(());
            }
            let waker = locks.get_mut(guard.claim);
            let old = waker.and_then(|waker| waker.replace(cx.waker().clone()));
            drop(locks);
            drop(old);
            Poll::Pending
        })
        .await;
        guard
    }

    fn lock(&self) -> MutexGuard<'_, RangeLocks<Option<Waker>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RangeGuard {
    /// The guard lasts until it is dropped: an answer is not all that the change needs.
    pub(super) fn outlast_answer(&self) {
        self.outlasts_answer.store(true, Ordering::Relaxed);
    }

    /// The change was answered. The task that it belongs to may notice that late, and may itself
    /// wait for a task that waits for the range.
    pub(super) fn answered(&self) {
        if !self.outlasts_answer.load(Ordering::Relaxed) {
            self.end();
        }
    }

    fn end(&self) {
        if self.has_ended.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut wakers = Vec::new();
        let mut locks = self.range_locks.lock();
        let own = locks.leave(self.claim, |waker| wakers.extend(waker.take()));
        drop(locks);
        drop(own);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::{Pin, pin},
        task::Context,
    };

    fn is_ready(guard: Pin<&mut impl Future<Output = RangeGuard>>) -> Option<RangeGuard> {
        match guard.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn only_overlapping_ranges_wait_and_in_order() {
        let range_locks = Arc::<SharedRangeLocks>::default();
        let mut first = pin!(range_locks.lock_range(0..10));
        let mut second = pin!(range_locks.lock_range(5..15));
        let mut third = pin!(range_locks.lock_range(12..20));
        let mut apart = pin!(range_locks.lock_range(20..30));
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
        assert!(range_locks.lock().is_empty());
    }

    #[test]
    fn a_dropped_claim_is_not_waited_for() {
        let range_locks = Arc::<SharedRangeLocks>::default();
        let mut first = pin!(range_locks.lock_range(0..10));
        let _held = is_ready(first.as_mut()).unwrap();
        let mut last = pin!(range_locks.lock_range(10..20));
        {
            let mut second = Box::pin(range_locks.lock_range(5..15));
            assert!(is_ready(second.as_mut()).is_none());
            let mut behind = pin!(range_locks.lock_range(12..13));
            assert!(is_ready(behind.as_mut()).is_none());
            drop(second);
            drop(is_ready(behind.as_mut()).unwrap());
        }
        drop(is_ready(last.as_mut()).unwrap());
        assert_eq!(range_locks.lock().len(), 1);
    }
}
