//! A runtime without threads, whose time a test advances.

use crate::runtime::{Runtime, Tasks};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

/// A clock that the test advances.
#[derive(Clone, Default)]
pub(super) struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(super) fn advance(&self, time: Duration) {
        let time = u64::try_from(time.as_millis()).unwrap();
        self.0.fetch_add(time, Ordering::Relaxed);
    }
}

pub(super) struct Until(Clock, Duration);

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.0.now() < self.1 {
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Runtime for Clock {
    type Sleep = Until;

    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn sleep(&self, time: Duration) -> Until {
        Until(self.clone(), self.now() + time)
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        job();
    }
}

impl Tasks for Clock {
    fn spawn(&self, _: impl Future<Output = ()> + Send + 'static) {
        unreachable!("no connection was accepted")
    }
}
