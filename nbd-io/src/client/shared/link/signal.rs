//! Whom the stream wakes.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

/// The one waker with which a stream is polled, whoever polls it. It wakes the task that drives
/// the connection at that time.
///
/// Its lock is apart from the connection's, because a stream may wake in the middle of a poll.
#[derive(Debug, Default)]
pub(super) struct Signal {
    target: Mutex<Option<Waker>>,
    fired: AtomicBool,
}

impl Signal {
    /// Has the stream wake this task from now on. What is returned is to be dropped when no lock
    /// is held, because a whole task may go with it.
    #[must_use]
    pub(super) fn set(&self, waker: Option<&Waker>) -> Option<Waker> {
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        replace(&mut target, waker)
    }

    /// Takes note that the driver is woken, not by the stream.
    pub(super) fn call(&self) {
        self.fired.store(true, Ordering::Release);
    }

    /// Whether the driver was woken since the last [`answer`](Signal::answer).
    pub(super) fn has_fired(&self) -> bool {
        self.fired.load(Ordering::Acquire)
    }

    /// Takes note that somebody came and polls the stream now.
    pub(super) fn answer(&self) {
        self.fired.store(false, Ordering::Release);
    }
}

/// Keeps a waker, and returns the one that was kept before if it was another one.
#[must_use]
pub(super) fn replace(kept: &mut Option<Waker>, waker: Option<&Waker>) -> Option<Waker> {
    match (&*kept, waker) {
        (Some(old), Some(new)) if old.will_wake(new) => None,
        (_, waker) => mem::replace(kept, waker.cloned()),
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.fired.store(true, Ordering::Release);
        let target = self
            .target
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(waker) = target {
            waker.wake();
        }
    }
}
