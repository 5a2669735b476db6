//! The task behind a connection.

use super::{Link, State, Stop, TICK, table::replace};
use crate::{client::Lost, runtime::Runtime};
use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

/// Time for which a poller may stay away while other calls wait; at most twice this.
const WATCH_INTERVAL: Duration = Duration::from_millis(10);

/// Time limit of disconnecting.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Polls a connection when no call does, keeps its time and sends NBD_CMD_DISC. It ends when the
/// connection is over. If it is dropped before, with its runtime, the connection is over too.
#[must_use]
pub(crate) struct ConnectionTask<R: Runtime> {
    link: Arc<Link>,
    runtime: R,
    tick: Option<R::Sleep>,
    watch: Option<R::Sleep>,
    /// The value of [`State::polls`](super::State) at the last look.
    polls: Option<u64>,
    disconnect: Option<R::Sleep>,
    /// When the first request may be late.
    deadline: Option<(Duration, R::Sleep)>,
}

impl<R: Runtime> ConnectionTask<R> {
    pub(crate) const fn new(link: Arc<Link>, runtime: R) -> Self {
        Self {
            link,
            runtime,
            tick: None,
            watch: None,
            polls: None,
            disconnect: None,
            deadline: None,
        }
    }

    /// Ends calls that have taken too long, and sets the timer for the next one. It is set anew
    /// only for an earlier time, so that a busy connection seldom has to.
    fn expire(&mut self, state: &mut State, cx: &mut Context<'_>) {
        loop {
            let Some(due) = state.next_due() else {
                self.deadline = None;
                state.armed = Duration::MAX;
                return;
            };
            let now = (state.clock)();
            let (armed, sleep) = match &mut self.deadline {
                Some(deadline) if deadline.0 <= due => deadline,
                deadline => deadline.insert((due, self.runtime.sleep(due.saturating_sub(now)))),
            };
            state.armed = *armed;
            if Pin::new(sleep).poll(cx).is_pending() {
                return;
            }
            self.deadline = None;
            state.expire(now.max(state.armed));
        }
    }

    /// Whether a timer has run out. It is started if it is not running.
    fn timer(
        sleep: &mut Option<R::Sleep>,
        runtime: &R,
        time: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let running = sleep.get_or_insert_with(|| runtime.sleep(time));
        ready!(Pin::new(running).poll(cx));
        *sleep = None;
        Poll::Ready(())
    }
}

// Nothing is pinned in it: timers can be moved.
impl<R: Runtime> Unpin for ConnectionTask<R> {}

impl<R: Runtime> Future for ConnectionTask<R> {
    type Output = Arc<Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Arc<Lost>> {
        let this = self.get_mut();
        let link = this.link.clone();
        let mut state = link.lock();
        let old = replace(&mut state.connection_task, cx.waker());
        let mut looks = false;
        while state.ticking && Self::timer(&mut this.tick, &this.runtime, TICK, cx).is_ready() {
            state.ticking = mem::take(&mut state.busy) || state.engine.in_flight() > 0;
            looks = true;
        }
        this.expire(&mut state, cx);
        while state.watching
            && Self::timer(&mut this.watch, &this.runtime, WATCH_INTERVAL, cx).is_ready()
        {
            state.watching = state.live() > 1 || state.engine.has_output();
            looks = true;
        }
        if looks && this.polls.replace(state.polls) == Some(state.polls) {
            // Either the stream had nothing to wake the poller for, or it does not come. The end of
            // the stream has to be noticed all the same.
            state.clear_poller();
        }
        if state.engine.is_closing() {
            state.release_poller();
        }
        let mut yields =
            state.poller.is_none() && state.poll_stream(cx.waker(), None) == Stop::Yield;

        // Once the stream is shut down, it lets reads wait only a while by itself.
        if state.engine.is_closing() && state.engine.lost().is_none() && !state.shut_down {
            let disconnect =
                Self::timer(&mut this.disconnect, &this.runtime, DISCONNECT_TIMEOUT, cx);
            if disconnect.is_ready() {
                let why = state.engine.end_of_session();
                state.lose(why);
            } else if state.engine.has_output() {
                yields |= state.poll_stream(cx.waker(), None) == Stop::Yield;
            }
        }
        let lost = state.engine.lost().cloned();
        link.unlock(state);
        drop(old);
        match lost {
            Some(lost) => Poll::Ready(lost),
            None => {
                if yields {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

impl<R: Runtime> Drop for ConnectionTask<R> {
    fn drop(&mut self) {
        // Without it requests would have no deadline, and disconnecting no end.
        self.link.abort(Lost::Disconnected);
    }
}

impl<R: Runtime> fmt::Debug for ConnectionTask<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionTask")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}
