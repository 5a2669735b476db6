//! One of the connections that a client wants: when it is dialed again.

use super::DialId;
use crate::client::{Error, Lost, Reconnect};
use std::{sync::Arc, time::Duration};

/// One of the connections that are wanted.
#[derive(Debug)]
pub(super) struct Member<L> {
    pub(super) phase: Phase<L>,
    /// Since when it is open.
    pub(super) since: Duration,
    /// Number of dials since one was lost that had lasted.
    pub(super) attempts: u32,
    /// When the last attempt begins at the latest.
    pub(super) deadline: Option<Duration>,
    /// The loss, or the error of the last attempt.
    pub(super) last: Option<Error>,
}

#[derive(Debug)]
pub(super) enum Phase<L> {
    Open(Arc<L>),
    /// It is to be dialed at this time.
    Missing(Duration),
    /// It is being dialed. `probed` is the member that has answered a probe since.
    Dialing {
        dial: DialId,
        probed: Option<Arc<L>>,
    },
    /// It could not be restored, and is dialed again when one is lost that has lasted.
    Resting,
    /// It is gone for good.
    Ended,
}

impl<L> Member<L> {
    /// The connection was lost. Whether it had lasted.
    pub(super) fn lost(&mut self, policy: &Reconnect, why: Error, now: Duration) -> bool {
        let lasted = now.saturating_sub(self.since) >= policy.lasting();
        if lasted {
            self.attempts = 0;
            self.deadline = None;
        }
        let lasted = self.attempts == 0;
        self.retry(policy, why, now);
        lasted
    }

    /// Waits for the next attempt, if there is one.
    pub(super) fn retry(&mut self, policy: &Reconnect, why: Error, now: Duration) {
        if self.deadline.is_none() {
            let total = policy.time_limit();
            self.deadline = total.and_then(|total| now.checked_add(total));
        }
        let pause = match self.attempts.checked_sub(1) {
            None => Duration::ZERO,
            Some(before) => policy.delay_after(before),
        };
        let is_late = self.deadline.is_some_and(|deadline| deadline <= now) && self.attempts > 0;
        let due = now.saturating_add(pause);
        self.last = Some(why);
        self.phase = if is_late || !policy.allows(self.attempts) {
            Phase::Resting
        } else {
            // The last attempt is made when the time is over, and not a pause earlier.
            Phase::Missing(
                self.deadline
                    .map_or(due, |deadline| due.min(deadline.max(now))),
            )
        };
    }

    /// Is dialed at once, as if it had never been.
    pub(super) fn afresh(&mut self, policy: &Reconnect, why: Error, now: Duration) {
        self.attempts = 0;
        self.deadline = None;
        self.retry(policy, why, now);
    }

    /// The reason for which there is no connection.
    pub(super) fn why(&mut self) -> Arc<Lost> {
        let last = self.last.take();
        let last = last.unwrap_or_else(|| Error::lost(Lost::Closed));
        match (&self.phase, last) {
            (Phase::Ended, Error::Lost(lost)) => lost,
            (_, last) => Arc::new(Lost::NotRestored {
                attempts: self.attempts,
                source: Arc::new(last),
            }),
        }
    }
}
