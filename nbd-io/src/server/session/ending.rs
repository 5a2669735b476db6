//! When a session ends, and how it leaves the client.

use super::{DISCONNECT_TIMEOUT, IDLE_SHRINK, QUIET, SHORTAGE, Session};
use crate::{
    runtime::Runtime,
    server::{CloseReason, clocks::elapsed, work::Work},
    transport::Transport,
};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

impl<T: Transport, R: Runtime> Session<'_, T, R> {
    /// Shuts down for writing, and takes the client's last bytes for a moment: if the connection
    /// was closed over its requests, it might lose replies that it has not received yet.
    pub(super) async fn close(&mut self) {
        self.transport.set_exclusive(false);
        let runtime = self.runtime;
        let most = if self.place.is_stopping() {
            QUIET * 2
        } else {
            DISCONNECT_TIMEOUT.min(self.settings.grace)
        };
        let mut timeout = runtime.sleep(most);
        let mut quiet = None;
        let mut moved = 0;
        poll_fn(|cx| {
            if Pin::new(&mut timeout).poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let said = self.transport.poll_shutdown(cx);
            if ready!(said).is_err() || self.transport.is_blocking() {
                return Poll::Ready(());
            }
            let drained = self
                .intake
                .poll_drain(cx, &mut self.transport, &self.buffers);
            match drained {
                Poll::Pending => {}
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(n)) => {
                    moved += n as u64;
                    // A client that goes on and on is left when the timeout ends. Meanwhile, others
                    // run.
                    cx.waker().wake_by_ref();
                }
            }
            let timer_waker = &mut self.clocks.timer_waker;
            timer_waker.set_waker::<R>(self.place, cx);
            if elapsed(&mut quiet, timer_waker, runtime, QUIET, moved) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// No more requests are taken. Those that were are answered, as far as they can be.
    pub(super) fn end(&mut self, ending: CloseReason) -> bool {
        self.ending.get_or_insert(ending);
        true
    }

    /// The client closed its side.
    pub(super) fn end_of_requests(&mut self) {
        self.ending = Some(if self.place.is_stopping() {
            CloseReason::Stopped
        } else if self.intake.transmission.is_idle() {
            CloseReason::Left
        } else {
            CloseReason::Truncated
        });
    }

    pub(super) fn broken(&self, error: io::Error) -> CloseReason {
        if self.place.is_stopping() && is_end(&error) {
            CloseReason::Stopped
        } else {
            CloseReason::Io(error)
        }
    }

    /// Looks at the clocks when nothing else is to be done. Ready when there is, or this is the
    /// end.
    pub(super) fn poll_clocks(&mut self, cx: &mut Context<'_>) -> Poll<Option<CloseReason>> {
        if let Work::Jobs(_, jobs) = &mut self.work {
            jobs.poll_tick(&self.load, cx);
        }
        let quiet = self.load.running() == 0 && self.replies.is_empty() && self.held.is_none();
        let runtime = self.runtime;
        let clocks = &mut self.clocks;
        clocks.timer_waker.set_waker::<R>(self.place, cx);
        if let Some(deficit) = &mut clocks.deficit
            && (self.place.is_stopping() || Pin::new(deficit).poll(cx).is_ready())
        {
            clocks.deficit = None;
            return Poll::Ready(None);
        }
        if self.ending.is_some() {
            // Requests that are being carried out are waited for; a client that does not take its
            // replies is not. Futures are given up if their client has left without a word.
            let has_left = !matches!(self.ending, Some(CloseReason::Disconnected));
            let is_waited_for = self.load.running() > 0 && !(has_left && self.work.is_async());
            if elapsed(
                &mut clocks.disconnect,
                &clocks.timer_waker,
                runtime,
                DISCONNECT_TIMEOUT,
                self.moved,
            ) && !is_waited_for
            {
                return Poll::Ready(self.ending.take());
            }
        }
        if !self.short {
            clocks.shortage = None;
        } else if elapsed(
            &mut clocks.shortage,
            &clocks.timer_waker,
            runtime,
            SHORTAGE,
            self.moved,
        ) {
            self.refuse_for_memory();
            return Poll::Ready(None);
        }
        if let Some(idle) = self.settings.idle_timeout
            && elapsed(
                &mut clocks.idle,
                &clocks.timer_waker,
                runtime,
                idle,
                self.moved,
            )
            && self.load.running() == 0
            // A client that is made to wait is not idle.
            && clocks.deficit.is_none()
        {
            return Poll::Ready(Some(CloseReason::Idle));
        }
        let may_rest = quiet && self.intake.has_memory() || !self.spare;
        if may_rest
            && self.load.running() == 0
            && elapsed(
                &mut clocks.idle_shrink,
                &clocks.timer_waker,
                runtime,
                IDLE_SHRINK,
                self.moved,
            )
        {
            if !self.spare {
                self.spare = true;
                self.place.idle(runtime.now().saturating_sub(IDLE_SHRINK));
            }
            if quiet {
                self.intake.shrink(&self.buffers);
                self.replies.shrink();
                self.work.shrink();
            }
        }
        if !self.place.is_stopping() {
            return Poll::Pending;
        }
        let Some(stop_deadline) = &mut clocks.stop_deadline else {
            // From now on requests are refused.
            clocks.stop_deadline = Some(runtime.sleep(self.settings.grace));
            return Poll::Ready(None);
        };
        if Pin::new(stop_deadline).poll(cx).is_ready()
            || quiet
                && self.intake.transmission.is_idle()
                && elapsed(
                    &mut clocks.quiet,
                    &clocks.timer_waker,
                    runtime,
                    QUIET,
                    self.moved,
                )
        {
            return Poll::Ready(Some(CloseReason::Stopped));
        }
        Poll::Pending
    }
}

/// Whether an error says just that the client is gone.
pub(in crate::server) fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}
