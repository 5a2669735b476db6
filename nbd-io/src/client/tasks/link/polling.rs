//! Moving the connection on, on behalf of all calls.

use super::State;
use crate::client::engine::{ReadPlan, no_reader};
use std::{
    io::{self, IoSliceMut},
    task::{Context, Poll, Waker, ready},
};

/// Number of reads by a task before it lets others run.
const MAX_READS: usize = 32;

/// The result of polling a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is done, or the connection is over.
    Served,
    /// Nothing more can be done; the stream or another call will wake the task.
    Quiet,
    /// There is more to do, after others had their turn: the task comes again at once.
    Yield,
}

impl State {
    /// Writes and reads until `current` is done or nothing more can be done without waiting. The
    /// stream wakes the task with this waker from now on.
    pub(super) fn poll_stream(&mut self, waker: &Waker, current: Option<usize>) -> Stop {
        self.poller_woken = false;
        self.begin_time();
        self.polls = self.polls.wrapping_add(1);
        self.current = current;
        let mut context = Context::from_waker(waker);
        let stop = self.steps(&mut context, current);
        self.current = None;
        stop
    }

    fn steps(&mut self, cx: &mut Context<'_>, current: Option<usize>) -> Stop {
        let mut writable = self.write(cx);
        for _ in 0..MAX_READS {
            if self.stream.is_none() {
                return Stop::Served;
            }
            if self.read(cx).is_pending() {
                return Stop::Quiet;
            }
            self.settle();
            self.pump();
            writable = writable && self.write(cx);
            if current.is_some_and(|key| self.is_done(key)) {
                return Stop::Served;
            }
        }
        Stop::Yield
    }

    /// Writes the bytes in the outbox. Returns whether the stream takes more.
    #[inline(always)]
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.engine.has_output() && !self.unflushed {
            return true;
        }
        match self.poll_write(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => {
                self.engine.ended(Some(error));
                self.settle();
                false
            }
            Poll::Pending => false,
        }
    }

    /// Writes all that is in the outbox, and the end of the stream after NBD_CMD_DISC: at once,
    /// because the server may close its side as soon as it has read that.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(()));
        };
        while self.engine.has_output() {
            let outbox = self.engine.outbox();
            let n = ready!(outbox.with_slices(&[], |slices| stream.poll_write(cx, slices)))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            outbox.advance(n);
            self.unflushed = true;
        }
        ready!(stream.poll_flush(cx))?;
        if self.engine.is_disconnecting() && !self.shut_down {
            ready!(stream.poll_shutdown(cx))?;
            self.shut_down = true;
        }
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// One read: the rest of a payload that is worth it, then the bytes behind it.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(());
        };
        if let Err(error) = ready!(stream.poll_read_ready(cx)) {
            self.engine.ended(Some(error));
            return Poll::Ready(());
        }
        let plan = self.engine.plan_read(no_reader().0);
        let beside = self.engine.beside();
        let (front, staged) = self.inbox.space(beside).split_at_mut(plan.front());
        let staged = IoSliceMut::new(staged);
        let direct = match &plan {
            ReadPlan::Owned(cookie, range) | ReadPlan::Ahead { cookie, range, .. } => {
                let buffer = self.engine.owned(*cookie);
                buffer.map(|buffer| IoSliceMut::new(&mut buffer[range.clone()]))
            }
            _ => None,
        };
        let read = match direct {
            Some(direct) if front.is_empty() => stream.poll_read(cx, &mut [direct, staged]),
            Some(direct) => {
                let front = IoSliceMut::new(front);
                stream.poll_read(cx, &mut [front, direct, staged])
            }
            None => stream.poll_read(cx, &mut [staged]),
        };
        match ready!(read) {
            Ok(0) => self.engine.ended(None),
            Ok(n) => {
                self.engine.received(&plan, n, &mut self.inbox, no_reader());
            }
            Err(error) => self.engine.ended(Some(error)),
        }
        Poll::Ready(())
    }
}
