//! One timer for the deadlines of a connection.

use crate::runtime::Runtime;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

/// The longest time for which the timer is set.
const LONGEST: Duration = Duration::from_secs(2);

/// One timer for deadlines that follow each other, of negotiating, of requests and of disconnecting.
///
/// A timer that ends before all others has its event loop woken, which takes a system call. So it is
/// set for a short time at most, and set anew when that is over: a deadline that is set later seldom
/// comes before it, and the timer is kept.
pub(crate) struct Alarm<R: Runtime>(Option<(Duration, R::Sleep)>);

impl<R: Runtime> Default for Alarm<R> {
    fn default() -> Self {
        Self(None)
    }
}

impl<R: Runtime> Alarm<R> {
    /// Waits until the clock shows `at`, which may differ from call to call.
    pub(crate) fn poll(&mut self, runtime: &R, at: Duration, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let (end, sleep) = match &mut self.0 {
                Some(timer) if timer.0 <= at => timer,
                timer => {
                    let now = runtime.now();
                    let time = at.saturating_sub(now).min(LONGEST);
                    timer.insert((now + time, runtime.sleep(time)))
                }
            };
            ready!(Pin::new(sleep).poll(cx));
            let is_over = *end >= at;
            self.0 = None;
            if is_over {
                return Poll::Ready(());
            }
        }
    }

    /// When the timer ends, if it runs.
    pub(crate) fn end(&self) -> Option<Duration> {
        self.0.as_ref().map(|timer| timer.0)
    }
}
