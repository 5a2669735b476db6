//! Whom the stream wakes.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

/// The one waker with which a stream is polled, by any task. It wakes the task that drives
/// the connection at that time: that of a call, or else the connection's own.
///
/// Its lock is apart from the connection's, because a stream may wake in the middle of a poll.
#[derive(Debug, Default)]
pub(super) struct Signal {
    targets: Mutex<Targets>,
    fired: AtomicBool,
}

#[derive(Debug, Default)]
struct Targets {
    /// The task of the call that drives. It is kept nowhere else.
    driver: Option<Waker>,
    connection_task: Option<Waker>,
}

// What these return is to be dropped when no lock is held, because a whole task may go with it.
impl Signal {
    /// Has the stream wake the task of this call from now on, or the connection task if there is none.
    #[must_use]
    pub(super) fn set_driver(&self, waker: Option<Waker>) -> Option<Waker> {
        mem::replace(&mut self.lock().driver, waker)
    }

    /// Takes note that the call that drives belongs to this task.
    #[must_use]
    pub(super) fn renew_driver(&self, waker: &Waker) -> Option<Waker> {
        replace(&mut self.lock().driver, waker)
    }

    /// The task of the call that drives.
    pub(super) fn driver(&self) -> Option<Waker> {
        self.lock().driver.clone()
    }

    #[must_use]
    pub(super) fn renew_keeper(&self, waker: &Waker) -> Option<Waker> {
        replace(&mut self.lock().connection_task, waker)
    }

    pub(super) fn connection_task(&self) -> Option<Waker> {
        self.lock().connection_task.clone()
    }

    /// Takes note that the driver is woken, not by the stream.
    pub(super) fn call(&self) {
        self.fired.store(true, Ordering::Release);
    }

    /// Whether the driver was woken since the last [`answer`](Signal::answer).
    pub(super) fn has_fired(&self) -> bool {
        self.fired.load(Ordering::Acquire)
    }

    /// Takes note that a call came and polls the stream now.
    pub(super) fn answer(&self) {
        self.fired.store(false, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Targets> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a waker, and returns the one that was kept before if it was another one.
#[must_use]
pub(super) fn replace(kept: &mut Option<Waker>, waker: &Waker) -> Option<Waker> {
    match kept {
        Some(old) if old.will_wake(waker) => None,
        _ => kept.replace(waker.clone()),
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.fired.store(true, Ordering::Release);
        let targets = self.lock();
        let target = targets
            .driver
            .as_ref()
            .or(targets.connection_task.as_ref())
            .cloned();
        drop(targets);
        if let Some(waker) = target {
            waker.wake();
        }
    }
}
