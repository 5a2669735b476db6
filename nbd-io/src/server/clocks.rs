//! Events that a session waits for besides its client and its export.

use super::registry::Registration;
use crate::runtime::Runtime;
use std::{
    pin::Pin,
    task::{Context, Waker},
    time::Duration,
};

/// Timers of a session, and the waker that they share.
pub(super) struct Clocks<S> {
    pub(super) timer_waker: TimerWaker,
    pub(super) idle: Option<Clock<S>>,
    pub(super) idle_shrink: Option<Clock<S>>,
    /// Until a request is refused for which there is no memory.
    pub(super) shortage: Option<Clock<S>>,
    /// Until another request may be taken, of a client that has had more than its rate allows.
    pub(super) deficit: Option<S>,
    /// While the server stops: until the client is taken to have no more requests.
    pub(super) quiet: Option<Clock<S>>,
    /// While the server stops: until it is done in any case.
    pub(super) stop_deadline: Option<S>,
    /// Until a client that has left and does not take its replies is given up.
    pub(super) disconnect: Option<Clock<S>>,
}

impl<S> Clocks<S> {
    pub(super) fn new(place: &Registration) -> Self {
        Self {
            timer_waker: TimerWaker::new(place),
            idle: None,
            idle_shrink: None,
            shortage: None,
            deficit: None,
            quiet: None,
            stop_deadline: None,
            disconnect: None,
        }
    }
}

/// Notes when a timer of a connection has ended, so that a task which is woken for each request need
/// not ask each timer each time.
pub(super) struct TimerWaker {
    waker: Waker,
    /// The task that it wakes.
    task: Option<Waker>,
    /// Number of its wake-ups.
    wakes: u64,
}

impl TimerWaker {
    fn new(place: &Registration) -> Self {
        Self {
            waker: place.timer_waker(),
            task: None,
            wakes: 0,
        }
    }

    /// To be called before clocks are looked at: from now on the task is woken when one of them ends,
    /// and when the connection has to.
    pub(super) fn set_waker<R: Runtime>(&mut self, place: &Registration, cx: &Context<'_>) {
        let is_known = |task: &Waker| task.will_wake(cx.waker());
        if !self.task.as_ref().is_some_and(is_known) {
            place.wake(cx.waker());
            self.task = Some(cx.waker().clone());
        }
        if !R::TIMERS_WAKE || place.has_timer_ended() {
            self.wakes += 1;
        }
    }
}

/// A timer, and the state of the connection when it was set.
pub(super) struct Clock<S> {
    sleep: S,
    /// The bytes that had been moved.
    moved: u64,
    /// Number of wake-ups of the timers' waker when this timer was last polled.
    wakes: u64,
}

/// Whether nothing was moved for at least `time`, and at most twice as long.
#[inline]
pub(super) fn elapsed<R: Runtime>(
    clock: &mut Option<Clock<R::Sleep>>,
    timer_waker: &TimerWaker,
    runtime: &R,
    time: Duration,
    moved: u64,
) -> bool {
    let is_set = matches!(clock, Some(clock) if clock.wakes == timer_waker.wakes);
    !is_set && poll_clock(clock, timer_waker, runtime, time, moved)
}

/// Sets a clock, or asks one that may have ended.
fn poll_clock<R: Runtime>(
    clock: &mut Option<Clock<R::Sleep>>,
    timer_waker: &TimerWaker,
    runtime: &R,
    time: Duration,
    moved: u64,
) -> bool {
    loop {
        let set = clock.get_or_insert_with(|| Clock {
            sleep: runtime.sleep(time),
            moved,
            wakes: timer_waker.wakes,
        });
        set.wakes = timer_waker.wakes;
        let cx = &mut Context::from_waker(&timer_waker.waker);
        if Pin::new(&mut set.sleep).poll(cx).is_pending() {
            return false;
        }
        let unmoved = set.moved == moved;
        *clock = None;
        if unmoved {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Peer, registry::Room},
        *,
    };
    use crate::server::registry::Registry;
    use std::{
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Poll, Wake},
    };

    /// Counts how often timers were polled, and how often the task was woken.
    #[derive(Clone, Default)]
    struct Counting {
        polls: Arc<AtomicUsize>,
        wakes: Arc<AtomicUsize>,
        waker: Arc<Mutex<Option<Waker>>>,
        is_over: Arc<AtomicUsize>,
    }

    impl Future for Counting {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.polls.fetch_add(1, Ordering::Relaxed);
            *self.waker.lock().unwrap() = Some(cx.waker().clone());
            match self.is_over.load(Ordering::Relaxed) {
                0 => Poll::Pending,
                _ => Poll::Ready(()),
            }
        }
    }

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.wakes.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Runtime for Counting {
        type Sleep = Self;

        const TIMERS_WAKE: bool = true;

        fn now(&self) -> Duration {
            Duration::ZERO
        }

        fn sleep(&self, _: Duration) -> Self {
            self.clone()
        }

        fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
            job();
        }
    }

    #[test]
    fn a_timer_is_asked_when_it_is_set_and_when_one_has_ended() {
        let room = Room {
            most: 1,
            most_of_client: usize::MAX,
            idle: None,
        };
        let place = Arc::new(Registry::default()).enter(room, &Peer::Unix, Duration::ZERO);
        let place = place.unwrap();
        let runtime = Counting::default();
        let polls = || runtime.polls.load(Ordering::Relaxed);
        let task = Waker::from(Arc::new(runtime.clone()));
        let cx = &Context::from_waker(&task);
        let mut clocks = Clocks::new(&place);
        let mut look = |moved| {
            clocks.timer_waker.set_waker::<Counting>(&place, cx);
            let timer_waker = &clocks.timer_waker;
            elapsed(
                &mut clocks.idle_shrink,
                timer_waker,
                &runtime,
                Duration::ZERO,
                moved,
            )
        };
        for moved in 0..3 {
            assert!(!look(moved));
        }
        assert_eq!(polls(), 1);
        runtime.is_over.store(1, Ordering::Relaxed);
        let timer_waker = runtime.waker.lock().unwrap().take().unwrap();
        timer_waker.wake();
        assert_eq!(runtime.wakes.load(Ordering::Relaxed), 1);
        // It was not polled in time, but nothing was moved either.
        assert!(look(0));
        assert_eq!(polls(), 2);
    }
}
