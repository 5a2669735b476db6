//! The memory for payloads that the connections of a server share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Waker},
};

/// Share of every connection in any case, in bytes.
const MIN_SHARE: u64 = 1 << 20;

/// Memory beyond the share of every connection.
///
/// A connection may have no more of it than it leaves to others. So the first takes up to a half,
/// and of `n` greedy ones each has one part in `n + 1`, of which one is always left; a client that
/// needs little finds it there, even if other clients do not take their replies.
#[derive(Debug)]
pub(super) struct Budget {
    most: u64,
    taken: AtomicU64,
    is_waited_for: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Budget {
    pub(super) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            taken: AtomicU64::new(0),
            is_waited_for: AtomicBool::new(false),
            waiting: Mutex::default(),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `more` for a connection that has `all` then.
    fn take(&self, more: u64, all: u64) -> bool {
        let taken = self
            .taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                let after = taken.checked_add(more)?;
                (taken.checked_add(all)? <= self.most).then_some(after)
            });
        taken.is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::SeqCst);
        if self.is_waited_for.swap(false, Ordering::SeqCst) {
            let waiting = std::mem::take(&mut *self.waiting());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    fn wait(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        self.is_waited_for.store(true, Ordering::SeqCst);
    }
}

/// The part of the budget that one connection has, which goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    taken: u64,
}

impl Share {
    pub(super) const fn new(budget: Arc<Budget>) -> Self {
        Self { budget, taken: 0 }
    }

    /// Makes sure that the connection may have so many bytes. If it may not, its task is woken when
    /// that has changed.
    #[inline]
    pub(super) fn cover(&mut self, bytes: u64, cx: &Context<'_>) -> bool {
        let all = bytes.saturating_sub(MIN_SHARE);
        all <= self.taken || self.take(all, cx)
    }

    fn take(&mut self, all: u64, cx: &Context<'_>) -> bool {
        let more = all - self.taken;
        let covered = self.budget.take(more, all) || {
            self.budget.wait(cx);
            // It may have been given back before there was a task to wake.
            self.budget.take(more, all)
        };
        if covered {
            self.taken = all;
        }
        covered
    }

    /// Gives back memory beyond that for so many bytes.
    pub(super) fn settle(&mut self, bytes: u64) {
        let all = bytes.saturating_sub(MIN_SHARE);
        if all < self.taken {
            self.budget.give_back(self.taken - all);
            self.taken = all;
        }
    }

    /// Whether there is anything that could be given back.
    pub(super) const fn is_empty(&self) -> bool {
        self.taken == 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.settle(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::atomic::AtomicUsize, task::Wake};

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_greedy_always_leave_something_to_others() {
        let budget = Budget::new(100 * MIN_SHARE);
        let cx = Context::from_waker(Waker::noop());
        let mut shares: Vec<_> = (0..1000)
            .map(|_| {
                let mut share = Share::new(Arc::clone(&budget));
                // It takes as much as it gets.
                let mut has = 0;
                while share.cover(has + MIN_SHARE / 4, &cx) {
                    has += MIN_SHARE / 4;
                }
                assert!(has >= MIN_SHARE, "the share of every connection");
                share
            })
            .collect();
        assert!(budget.taken.load(Ordering::SeqCst) <= 100 * MIN_SHARE);
        assert!(shares[0].taken >= 49 * MIN_SHARE && shares[0].taken <= 50 * MIN_SHARE);
        assert!(shares[1].taken >= 24 * MIN_SHARE);
        // Less than it has is granted, even if the others have all the rest.
        assert!(shares[0].cover(10 * MIN_SHARE, &cx));
        shares[0].settle(2 * MIN_SHARE);
        assert_eq!(shares[0].taken, MIN_SHARE);
        drop(shares);
        assert_eq!(budget.taken.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_waiting_connection_is_woken_when_memory_is_given_back() {
        let budget = Budget::new(10 * MIN_SHARE);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let (mut first, mut second) = (
            Share::new(Arc::clone(&budget)),
            Share::new(Arc::clone(&budget)),
        );
        assert!(first.cover(9 * MIN_SHARE, &cx));
        assert!(second.cover(MIN_SHARE, &cx) && !second.cover(9 * MIN_SHARE, &cx));
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        first.settle(MIN_SHARE);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(second.cover(9 * MIN_SHARE, &cx));
    }
}
