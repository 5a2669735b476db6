//! The ways in which a session has a request carried out.

use super::Session;
use crate::{
    runtime::Runtime,
    server::{
        CloseReason,
        execute::may_know_zeroes,
        jobs::{Panicked, carry_out, carry_out_now, carry_out_zeroes, guard},
        work::Work,
    },
    transport::Transport,
};
use nbd_proto::server::Request;
use std::{task::Context, time::Duration};

/// A request counts as quick if it takes no longer than this, and a nanosecond for each byte.
const QUICK: Duration = Duration::from_micros(100);

/// So many quick requests in a row are a reason to believe that the next one will be.
const QUICK_STREAK: u32 = 16;

impl<T: Transport, R: Runtime> Session<'_, T, R> {
    /// Has a request carried out that moves so many bytes. Returns whether to look for more behind it.
    ///
    /// There are five ways. As a future, if the export is asynchronous and has no answer at hand. Or
    /// in place, if the export never waits; in place, if only this connection waits for the thread
    /// and the last requests were quick; from a cache (`carry_out_now`), if the export has one and
    /// it hits; else as a job on another thread. Two of these have a clock, because a slow request
    /// ends the second.
    #[inline]
    pub(super) fn carry_out(&mut self, request: Request, moves: u64) -> bool {
        let (export, jobs) = match &mut self.work {
            Work::Jobs(export, jobs) => (&**export, jobs),
            Work::Futures(_) => {
                self.begin(request);
                return true;
            }
        };
        let clock = if self.in_place {
            Some(Duration::ZERO)
        } else if jobs.quick_streak() >= QUICK_STREAK
            && self.load.running() == 0
            && is_short(&request)
        {
            self.runtime.own_thread_clock()
        } else {
            None
        };
        let Some(before) = clock else {
            let left = carry_out_now(export, request, &mut self.replies, &self.report);
            let Some(request) = left else { return true };
            let (is_short, intake) = (is_short(&request), &mut self.intake);
            let pushed = jobs.push(&mut self.load, request, is_short, |buffer, buffers| {
                intake.move_payload(buffer, buffers)
            });
            if let Err(request) = pushed {
                self.refuse(request);
            }
            return true;
        };
        let payload = self.intake.payload();
        carry_out(export, request, payload, &mut self.replies, &self.report);
        self.intake.release(&self.buffers);
        if !self.in_place {
            let now = self.runtime.own_thread_clock().unwrap_or(Duration::MAX);
            if !is_quick(now.saturating_sub(before), moves) {
                jobs.reset_quick_streak();
            }
        }
        // A lone request need not be looked behind.
        self.intake.has_bytes()
    }

    /// Begins a request of an asynchronous export, or answers it from the export's cache.
    fn begin(&mut self, request: Request) {
        let Work::Futures(futures) = &mut self.work else {
            return;
        };
        let (replies, report) = (&mut self.replies, &self.report);
        let Some(request) = futures.answer_now(request, false, replies, report) else {
            return;
        };
        match self.intake.share_payload(&self.buffers) {
            Some(payload) => futures.push(&mut self.load, request, payload),
            None => self.refuse(request),
        }
    }

    /// Takes in requests that are done. Returns whether there were any.
    pub(super) fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        let (work, load, replies) = (&mut self.work, &mut self.load, &mut self.replies);
        // A future may also panic when it is dropped.
        let collected = guard(|| work.collect(load, cx, replies)).and_then(|collected| collected);
        if let Work::Jobs(_, jobs) = &mut self.work
            && let Some(request) = jobs.take_not_zero()
        {
            (self.held, self.asked_for_zeroes) = (Some(request), true);
        }
        collected.unwrap_or_else(|Panicked| self.end(CloseReason::Panicked))
    }

    /// Sees to a read for which there is no memory, and that may need none because it is all zero. Gives
    /// it back if it has to wait.
    pub(super) fn answer_without_memory(&mut self, request: Request) -> Option<Request> {
        if self.asked_for_zeroes || !matches!(request, Request::Read { .. }) {
            return Some(request);
        }
        let (replies, report) = (&mut self.replies, &self.report);
        let left = match &mut self.work {
            Work::Futures(futures) => futures.answer_now(request, true, replies, report),
            Work::Jobs(export, _) if !may_know_zeroes(&**export) => return Some(request),
            Work::Jobs(export, _) if self.in_place => {
                carry_out_zeroes(&**export, request, replies, report).err()
            }
            Work::Jobs(_, jobs) => {
                jobs.ask_for_zeroes(&mut self.load, request);
                self.short = false;
                return None;
            }
        };
        (self.short, self.asked_for_zeroes) = (left.is_some(), left.is_some());
        left
    }
}

/// Whether a request is one that a cache can answer.
fn is_short(request: &Request) -> bool {
    match request {
        Request::Read { .. } | Request::BlockStatus { .. } => true,
        Request::Write { fua, .. } => !fua,
        Request::Flush { .. }
        | Request::Trim { .. }
        | Request::Cache { .. }
        | Request::WriteZeroes { .. } => false,
    }
}

/// Whether a request that moved `len` bytes and took so long waited for nothing.
pub(in crate::server) fn is_quick(took: Duration, len: u64) -> bool {
    took <= QUICK.saturating_add(Duration::from_nanos(len))
}
