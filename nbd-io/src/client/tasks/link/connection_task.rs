//! The task behind a connection.

use super::{
    super::{alarm::Alarm, timed::SHUTDOWN_TIMEOUT},
    Link, State, Stop, TICK,
    table::replace,
};
use crate::{client::Lost, mutation::Mutation, runtime::Runtime};
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
    /// The timer of requests that may be late, and of disconnecting.
    alarm: Alarm<R>,
    /// When the session is over whatever the server does, and whether that counts from when the
    /// stream was shut down.
    end: Option<(Duration, bool)>,
}

impl<R: Runtime> ConnectionTask<R> {
    /// `alarm` is the one that the connection had until now.
    pub(crate) const fn new(link: Arc<Link>, runtime: R, alarm: Alarm<R>) -> Self {
        Self {
            link,
            runtime,
            tick: None,
            watch: None,
            polls: None,
            alarm,
            end: None,
        }
    }

    /// Ends calls that have taken too long, and a session that does not end. Sets the timer for the
    /// next one.
    fn expire(&mut self, state: &mut State, cx: &mut Context<'_>) {
        let mut has_read = false;
        while state.engine.lost().is_none() {
            let end = self.end.map(|(end, _)| end);
            let Some(due) = state.next_due().into_iter().chain(end).min() else {
                break;
            };
            if self.alarm.poll(&self.runtime, due, cx).is_pending() {
                state.armed = self.alarm.end().unwrap_or(due);
                return;
            }
            // An answer that has come is no late one: perhaps the task that was to read it is late.
            if !mem::replace(&mut has_read, true) && !Mutation::UnreadAnswers.is_made() {
                state.release_poller();
                state.poll_stream(cx.waker(), None);
                continue;
            }
            let now = (state.clock)().max(due);
            state.expire(now);
            if end.is_some_and(|end| end <= now) {
                let why = state.engine.end_of_session();
                state.lose(why);
            }
        }
        state.armed = Duration::MAX;
    }

    /// Gives a session that is to end its time. Returns whether it got less than it had.
    fn limit_end(&mut self, state: &State) -> bool {
        let counted = self.end.map(|(_, from_shutdown)| from_shutdown);
        if !state.engine.is_closing() || counted.is_some_and(|counted| counted == state.shut_down) {
            return false;
        }
        let time = match state.shut_down {
            true => SHUTDOWN_TIMEOUT,
            false => DISCONNECT_TIMEOUT,
        };
        let end = (state.clock)() + time;
        let before = self.end.map_or(Duration::MAX, |(end, _)| end);
        self.end = Some((end.min(before), state.shut_down));
        true
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
            if !state.ticking {
                state.engine.shrink();
            }
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
        let yields = state.poller.is_none() && state.poll_stream(cx.waker(), None) == Stop::Yield;

        if state.engine.lost().is_none() && this.limit_end(&state) {
            this.expire(&mut state, cx);
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
