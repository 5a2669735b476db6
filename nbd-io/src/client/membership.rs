//! The connections of a client: those that it has, wants and trusts.
//!
//! ```text
//!             next: Dial                   join: Joined
//!  Missing ───────────────▶ Dialing ─────────────────────────▶ Open
//!    ▲ ▲                       │ failed                          │ lost
//!    │ └───────────────────────┤                                 │
//!    │   another attempt       ▼ no attempt is left              │
//!    │                      Resting ── another one is lost ──┐   │
//!    └───────────────────────────────────────────────────────┴───┘
//! ```
//!
//! This machine decides and does nothing: it has no socket, no lock, no task and no clock. Its
//! driver dials when [`next`](Membership::next) says so, takes the step that
//! [`join`](Membership::join) returns, and reports the outcome. Time is read from a clock of the driver's; only differences
//! matter.
//!
//! **Trust.** If the server has crashed, all connections lead to the server of before, even if some
//! of them do not know it yet. So all of them are given up when one is lost, unless the export is
//! read-only. A new connection replays unflushed changes before anything else. If others are open
//! by then, one of these has to answer a probe first: it may lead to the server of before the crash
//! while the new connection leads to the one after it, and a flush of the new one must not be taken
//! to cover writes over the other.

mod member;
#[cfg(test)]
mod tests;

use self::member::{Member, Phase};
use super::{ClientEvent, ConnectionState, Error, Lost, Observer, Reconnect, is_refusal};
use nbd_proto::ExportInfo;
use std::{mem, sync::Arc, time::Duration};

/// Least time for each attempt, even if the time of the policy is over before. A part of the last
/// attempt is made in that time.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(5);

/// The connections of a client. `L` is a connection of the driver's.
#[derive(Debug)]
pub struct Membership<L> {
    /// Whether and how lost connections are replaced.
    policy: Option<Reconnect>,
    is_read_only: bool,
    can_flush: bool,
    members: Vec<Member<L>>,
    state: ConnectionState,
    closing: bool,
    /// Number of dials begun.
    dials: u64,
    /// The dial that replays unflushed writes.
    replaying: Option<DialId>,
    observer: Observer,
}

/// Names one dial. Reports of a dial that is out of date change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialId {
    member: usize,
    number: u64,
}

/// The next step of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Dial, and [`join`](Membership::join) the connection or report that it
    /// [failed](Membership::failed).
    Dial {
        /// The dial.
        dial: DialId,
        /// When it has failed if it is not done.
        by: Option<Duration>,
    },
    /// Nothing, before this time or a change.
    Wait(Option<Duration>),
    /// Nothing any more.
    Over,
}

/// The work that a new connection needs before requests may use it.
#[derive(Debug)]
#[must_use]
pub enum Join<L> {
    /// All unflushed writes have to be written over it, in order. Then it is
    /// [`replayed`](Membership::replayed).
    Replay,
    /// This member has to answer a flush. Then it is [`probed`](Membership::probed).
    Probe(Arc<L>),
    /// Another connection is replaying: ask again after a change.
    Wait,
    /// Nothing: it is a member.
    Joined,
    /// It is not wanted any more, and is to be closed.
    Unwanted,
}

/// The consequences of a loss.
#[derive(Debug)]
#[must_use]
pub struct Loss<L> {
    /// Connections that are no members any more, and have to be ended.
    pub given_up: Vec<Arc<L>>,
    /// Changes answered before may be lost, and later answers over connections of before do not
    /// count.
    pub ends_epoch: bool,
}

impl<L> Default for Loss<L> {
    fn default() -> Self {
        Self {
            given_up: Vec::new(),
            ends_epoch: false,
        }
    }
}

impl<L> Membership<L> {
    /// No members yet, of an export. Without a policy none is replaced.
    #[must_use]
    pub fn new(policy: Option<Reconnect>, export: &ExportInfo) -> Self {
        Self {
            policy,
            is_read_only: export.is_read_only(),
            can_flush: export.can_flush(),
            members: Vec::new(),
            state: ConnectionState::Connected,
            closing: false,
            dials: 0,
            replaying: None,
            observer: Observer::default(),
        }
    }

    /// Reports events of this one, which the driver has to [deliver](Observer::deliver).
    #[must_use]
    pub fn observed(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// Takes in a connection of the first hour, before which there is nothing to trust in.
    pub fn add(&mut self, link: Arc<L>, now: Duration) {
        self.members.push(Member {
            phase: Phase::Open(link),
            since: now,
            attempts: 0,
            deadline: None,
            last: None,
        });
        self.connected(0);
    }

    /// Reports that one more connection is in use.
    fn connected(&self, attempts: u32) {
        self.observer.push(|| ClientEvent::Connected {
            connections: self.open().count(),
            attempts,
        });
    }

    /// Reports that a connection is lost.
    fn report_loss(&self, cause: &Arc<Lost>) {
        self.observer.push(|| ClientEvent::Lost {
            cause: cause.clone(),
            connections: self.open().count(),
        });
    }

    /// The connections that requests may use.
    pub fn open(&self) -> impl Iterator<Item = &Arc<L>> {
        self.members
            .iter()
            .filter_map(|member| match &member.phase {
                Phase::Open(link) => Some(link),
                _ => None,
            })
    }

    /// Whether requests may use a connection.
    #[must_use]
    pub fn is_member(&self, link: &Arc<L>) -> bool {
        self.open().any(|open| Arc::ptr_eq(open, link))
    }

    /// Number of connections that are wanted.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.members.len()
    }

    /// Whether no connection is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let is_open = |member: &Member<L>| matches!(member.phase, Phase::Open(_));
        self.members.iter().all(is_open)
    }

    /// State of the connections.
    #[must_use]
    pub const fn state(&self) -> &ConnectionState {
        &self.state
    }

    /// Whether there is no connection, and will be none.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.state, ConnectionState::Over(_))
    }

    /// Whether the client wants no connections any more.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether lost connections are replaced.
    #[must_use]
    pub const fn reconnects(&self) -> bool {
        self.policy.is_some()
    }

    /// The next action. A dial that is returned has begun.
    pub fn next(&mut self, now: Duration) -> Next {
        if self.closing || self.is_over() {
            return Next::Over;
        }
        let missing = |(at, member): (usize, &Member<L>)| match member.phase {
            Phase::Missing(due) => Some((due, at)),
            _ => None,
        };
        let first = self.members.iter().enumerate().filter_map(missing).min();
        let Some((due, at)) = first else {
            return Next::Wait(None);
        };
        if due > now {
            return Next::Wait(Some(due));
        }
        self.dials += 1;
        let dial = DialId {
            member: at,
            number: self.dials,
        };
        let member = &mut self.members[at];
        member.attempts = member.attempts.saturating_add(1);
        member.phase = Phase::Dialing { dial, probed: None };
        // The first attempt after a time in which no call wanted a connection may be late, too.
        let by = member.deadline.map(|deadline| {
            let shortest = now.saturating_add(SHORTEST_ATTEMPT);
            deadline.max(shortest)
        });
        if let ConnectionState::Reconnecting { attempt, .. } = &mut self.state {
            *attempt = member.attempts;
        }
        Next::Dial { dial, by }
    }

    /// Whether a dial is still wanted.
    #[must_use]
    pub fn is_wanted(&self, dial: DialId) -> bool {
        let phase = self.members.get(dial.member).map(|member| &member.phase);
        matches!(phase, Some(Phase::Dialing { dial: own, .. }) if *own == dial)
            && !self.closing
            && !self.is_over()
    }

    /// Makes a new connection a member, or returns the step that comes before. `needs_replay` is
    /// whether there are unflushed writes that the server may have lost.
    pub fn join(
        &mut self,
        dial: DialId,
        link: &Arc<L>,
        needs_replay: bool,
        now: Duration,
    ) -> Join<L> {
        if !self.is_wanted(dial) {
            return Join::Unwanted;
        }
        if needs_replay {
            let another = self.replaying.filter(|replaying| *replaying != dial);
            if another.is_some_and(|replaying| self.is_wanted(replaying)) {
                return Join::Wait;
            }
            self.replaying = Some(dial);
            return Join::Replay;
        }
        if self.can_flush && !self.is_read_only {
            let count = self.open().count();
            let Member {
                phase, attempts, ..
            } = &self.members[dial.member];
            let is_probed = match phase {
                Phase::Dialing {
                    probed: Some(probed),
                    ..
                } => self.is_member(probed),
                _ => false,
            };
            if count > 0 && !is_probed {
                // Another one each time, because one may be sick.
                let at = usize::try_from(*attempts).unwrap_or(0) % count;
                if let Some(other) = self.open().nth(at) {
                    return Join::Probe(other.clone());
                }
            }
        }
        let member = &mut self.members[dial.member];
        member.phase = Phase::Open(link.clone());
        member.since = now;
        let attempts = member.attempts;
        self.state = ConnectionState::Connected;
        self.connected(attempts);
        Join::Joined
    }

    /// All unflushed writes were written over a new connection. Whether it is the one that was to do
    /// so; then it may [`join`](Membership::join).
    pub fn replayed(&mut self, dial: DialId) -> bool {
        self.replaying
            .take_if(|replaying| *replaying == dial)
            .is_some()
            && self.is_wanted(dial)
    }

    /// A member has answered the probe of a new connection.
    pub fn probed(&mut self, dial: DialId, other: &Arc<L>) {
        if let Some(member) = self.members.get_mut(dial.member)
            && let Phase::Dialing { dial: own, probed } = &mut member.phase
            && *own == dial
        {
            *probed = Some(other.clone());
        }
    }

    /// A dial has failed, or a step before the connection could join.
    pub fn failed(&mut self, dial: DialId, error: Error, now: Duration) {
        let replayed = self.replaying.take_if(|replaying| *replaying == dial);
        if !self.is_wanted(dial) {
            return;
        }
        let in_vain = match &error {
            Error::Lost(lost) => matches!(**lost, Lost::Changed { .. }),
            error => replayed.is_some() && is_refusal(error),
        };
        let member = &mut self.members[dial.member];
        let cause = error.clone();
        match &self.policy {
            Some(policy) if !in_vain => member.retry(policy, error, now),
            _ => {
                member.last = Some(error);
                member.phase = Phase::Resting;
            }
        }
        self.observer.push(|| ClientEvent::AttemptFailed {
            attempt: member.attempts,
            cause,
            retry_after: match member.phase {
                Phase::Missing(due) => Some(due.saturating_sub(now)),
                _ => None,
            },
        });
        self.settle(dial.member);
    }

    /// A connection is over, or takes no requests any more. `None` if it is no member, which changes
    /// nothing.
    pub fn lost(&mut self, link: &Arc<L>, why: &Arc<Lost>, now: Duration) -> Option<Loss<L>> {
        let is_own = |member: &Member<L>| match &member.phase {
            Phase::Open(open) => Arc::ptr_eq(open, link),
            _ => false,
        };
        let at = self.members.iter().position(is_own)?;
        let error = Error::Lost(why.clone());
        let Some(policy) = self.policy.as_ref().filter(|_| !self.closing) else {
            self.members[at].last = Some(error);
            self.members[at].phase = Phase::Ended;
            if !self.closing {
                self.report_loss(why);
            }
            self.settle(at);
            return Some(Loss::default());
        };
        // A connection that was lost at once was no success, or a request that a server dies of
        // would be sent to it for ever.
        let lasted = self.members[at].lost(policy, error, now);
        let mut given_up = Vec::new();
        for member in &mut self.members {
            match &member.phase {
                Phase::Open(other) if !self.is_read_only => {
                    given_up.push(other.clone());
                    member.lost(policy, Error::lost(Lost::GivenUp), now);
                }
                // If nothing said that it goes better now, they would be dialed without end.
                Phase::Resting if lasted => {
                    member.afresh(policy, Error::lost(Lost::GivenUp), now);
                }
                _ => {}
            }
        }
        if self.open().next().is_none() {
            self.state = ConnectionState::reconnecting(0, why.clone());
        }
        self.report_loss(why);
        self.settle(at);
        Some(Loss {
            given_up,
            ends_epoch: !self.is_read_only,
        })
    }

    /// Gives up all connections and dials at once. `None` if lost connections are not replaced.
    pub fn redial(&mut self, now: Duration) -> Option<Loss<L>> {
        if self.closing || self.is_over() {
            return None;
        }
        let policy = self.policy.as_ref()?;
        let mut given_up = Vec::new();
        for member in &mut self.members {
            if let Phase::Open(link) = &member.phase {
                given_up.push(link.clone());
            }
            member.afresh(policy, Error::lost(Lost::GivenUp), now);
        }
        if self.open().next().is_none() && matches!(self.state, ConnectionState::Connected) {
            let why = Arc::new(Lost::GivenUp);
            self.state = ConnectionState::reconnecting(0, why);
        }
        if !given_up.is_empty() {
            self.report_loss(&Arc::new(Lost::GivenUp));
        }
        self.settle(0);
        Some(Loss {
            given_up,
            ends_epoch: !self.is_read_only,
        })
    }

    /// Takes no more connections and no more requests. The connections that there were; `None` if it
    /// was closed before.
    pub fn close(&mut self) -> Option<Vec<Arc<L>>> {
        if mem::replace(&mut self.closing, true) {
            return None;
        }
        let open: Vec<_> = self.open().cloned().collect();
        if open.is_empty() {
            self.end();
        }
        Some(open)
    }

    /// There will be no connection any more, because the session has ended or the driver has.
    pub fn end(&mut self) {
        self.closing = true;
        for member in &mut self.members {
            member.phase = Phase::Ended;
        }
        self.settle(0);
    }

    /// It is over if there is no connection and none will be made. `at` is the last that was.
    fn settle(&mut self, at: usize) {
        let alive = |member: &Member<L>| match member.phase {
            Phase::Open(_) => true,
            Phase::Missing(_) | Phase::Dialing { .. } => !self.closing,
            Phase::Resting | Phase::Ended => false,
        };
        if self.is_over() || self.members.iter().any(alive) {
            return;
        }
        let why = match self.members.get_mut(at) {
            Some(member) if !self.closing => member.why(),
            _ => Arc::new(Lost::Disconnected),
        };
        if !self.closing {
            self.observer
                .push(|| ClientEvent::GaveUp { cause: why.clone() });
        }
        self.state = ConnectionState::Over(why);
    }
}
