//! One timer for the deadlines of a connection.

use crate::{mutation::Mutation, runtime::Runtime};
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
                    // Timers of some runtimes pend at first even if they have no time at all.
                    if at <= now && !Mutation::LateTimer.is_made() {
                        return Poll::Ready(());
                    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        task::Waker,
    };

    /// A clock in milliseconds. Its timers end with the next tick of it, as those of Tokio do.
    #[derive(Clone, Default)]
    struct Ticks(Arc<AtomicU64>);

    struct Sleep(Ticks, Duration);

    impl Future for Sleep {
        type Output = ();

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            match self.0.now() > self.1 {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        }
    }

    impl Runtime for Ticks {
        type Sleep = Sleep;

        fn now(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn sleep(&self, time: Duration) -> Sleep {
            Sleep(self.clone(), self.now() + time)
        }

        fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
            job();
        }
    }

    #[test]
    fn a_deadline_that_has_passed_is_noticed_however_late_the_task_comes() {
        let at = Duration::from_secs(4);
        let cx = &mut Context::from_waker(Waker::noop());
        // The times at which the task comes, in milliseconds.
        let arrivals: [&[u64]; 4] = [
            &[0, 2001, 4002],
            // The first timer ends after the deadline.
            &[0, 4100],
            &[0, 2001, 9000],
            // It comes for the first time after the deadline.
            &[4000],
        ];
        for arrivals in arrivals {
            let ticks = Ticks::default();
            let mut alarm = Alarm::default();
            for (left, arrival) in (0..arrivals.len()).rev().zip(arrivals) {
                ticks.0.store(*arrival, Ordering::Relaxed);
                let polled = alarm.poll(&ticks, at, cx);
                assert_eq!(
                    polled.is_ready(),
                    left == 0,
                    "{arrivals:?}, at {arrival} ms"
                );
            }
        }
    }

    #[test]
    fn a_deadline_in_the_past_ends_though_the_timer_is_set_for_later() {
        let cx = &mut Context::from_waker(Waker::noop());
        let ticks = Ticks::default();
        let mut alarm = Alarm::default();
        assert!(alarm.poll(&ticks, Duration::from_secs(9), cx).is_pending());
        ticks.0.store(1000, Ordering::Relaxed);
        let polled = alarm.poll(&ticks, Duration::from_millis(900), cx);
        assert!(polled.is_ready());
    }
}
