//! Connections that are made anew when they are lost.
//!
//! There is no thread behind them. A call that wants a connection and finds one missing makes it,
//! one call at a time and as the policy says; others wait, or use those that are there. A loss is
//! noticed by the call that it happens to.
//!
//! What was answered counts only if the connection is still one of the pool's when its caller looks.
//! One that was given up meanwhile may have led to a server that has crashed since, and a flush of
//! the next one must not be taken to cover it.

use super::{
    disconnect,
    plan::Plan,
    slots::{Slot, State},
};
use crate::{
    Error, Lost,
    link::{Link, farewell},
};
use nbd_io::client::{
    Changes, Request,
    shared::{ConnectionState, Reconnect},
};
use nbd_proto::Command;
use std::{
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// The connections of a client that come back.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(super) plan: Plan,
    pub(super) policy: Reconnect,
    /// How many bytes of writes are kept until they are flushed.
    keeps: u64,
    state: Mutex<State>,
    changed: Condvar,
}

/// What becomes of the export by a request.
#[derive(Debug)]
pub(crate) enum Effect {
    None,
    /// A flush that was sent when there were so many changes.
    Flush(u64),
    /// A change, on stable storage with its answer if it is `forced`. It is kept if it is there.
    Change {
        forced: bool,
        kept: Option<Request>,
    },
}

impl Restored {
    pub(super) fn new(plan: Plan, policy: Reconnect, links: Vec<Arc<Link>>) -> Self {
        Self {
            keeps: if plan.facts.export.can_flush() {
                policy.keeps()
            } else {
                0
            },
            plan,
            policy,
            state: Mutex::new(State {
                slots: links.into_iter().map(Slot::new).collect(),
                status: ConnectionState::Connected,
                closing: false,
                trying: false,
                changes: Changes::default(),
            }),
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all who wait for a change.
    pub(super) fn tell(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.changed.notify_all();
    }

    /// The connection that has the least to do, once there is one. It may have to be made first.
    /// `late` is when that is too late, from when it is first waited for.
    pub(crate) fn link(
        &self,
        command: Command,
        late: &mut Option<Instant>,
    ) -> Result<Arc<Link>, Error> {
        let mut state = self.lock();
        loop {
            self.look(&mut state);
            if let ConnectionState::Over(lost) = &state.status {
                return Err(Error::Lost(lost.clone()));
            }
            if state.closing {
                return Err(Error::lost(Lost::Disconnected));
            }
            let next = state.next_due().filter(|_| !state.trying);
            if let Some((index, due)) = next
                && due <= Instant::now()
            {
                self.attempt(state, index);
                state = self.lock();
                continue;
            }
            let usable = state.open().filter_map(|link| Some((link.load()?, link)));
            if let Some((_, best)) = usable.min_by_key(|(load, _)| *load) {
                return Ok(best.clone());
            }
            let left = state.open().find(|link| link.is_to_be_left()).cloned();
            if let Some(left) = left {
                drop(state);
                let _ = left.disconnect(farewell());
                self.lost(&left);
                state = self.lock();
                continue;
            }
            if let Some(after) = self.plan.options.request_timeout
                && let now = Instant::now()
                && *late.get_or_insert(now.checked_add(after).unwrap_or(now)) <= now
            {
                return Err(Error::Timeout { command, after });
            }
            let first = late.iter().copied().chain(next.map(|(_, due)| due)).min();
            state = self.wait(state, first);
        }
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        let Some(until) = until else {
            let woken = self.changed.wait(state);
            return woken.unwrap_or_else(PoisonError::into_inner);
        };
        let left = until.saturating_duration_since(Instant::now());
        let woken = self.changed.wait_timeout(state, left);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes note of connections that are over.
    fn look(&self, state: &mut State) {
        loop {
            let closed = |link: &&Arc<Link>| link.load().is_none();
            let over = |link: &Arc<Link>| Some((link.clone(), link.lost()?));
            let over = state.open().filter(closed).find_map(over);
            let Some((link, lost)) = over else { return };
            self.note(state, &link, &lost);
        }
    }

    /// A connection may be over.
    pub(crate) fn lost(&self, link: &Arc<Link>) {
        let Some(lost) = link.lost() else { return };
        let mut state = self.lock();
        self.note(&mut state, link, &lost);
        self.tell(state);
    }

    fn note(&self, state: &mut State, link: &Arc<Link>, lost: &Arc<Lost>) {
        let Some(index) = state.place(link) else {
            return;
        };
        let why = Error::Lost(lost.clone());
        if state.closing {
            state.slots[index].give_up(why);
            state.settle(index);
            return;
        }
        let lasted = state.slots[index].close(&self.policy, why);
        for slot in &mut state.slots {
            let why = Error::lost(Lost::GivenUp);
            // If the server has crashed, the others are dead too, but what they have received before
            // may not be read yet.
            if let Some(other) = slot.link().cloned()
                && !self.plan.facts.export.is_read_only()
            {
                slot.close(&self.policy, why);
                other.abort(Lost::GivenUp);
            } else if lasted && slot.is_resting() {
                // If nothing said that it will go better now, they would be tried without end.
                slot.revive(&self.policy, why);
            }
        }
        if self.plan.may_lose() {
            state.changes.tear(self.keeps > 0);
        }
        if state.open().next().is_none() {
            state.status = ConnectionState::reconnecting(0, lost.clone());
        }
        state.settle(index);
        self.changed.notify_all();
    }

    /// Whether what was answered over a connection counts: not if that was lost meanwhile.
    pub(crate) fn counts(&self, link: &Arc<Link>, effect: Effect) -> bool {
        if matches!(effect, Effect::None) {
            return true;
        }
        let mut state = self.lock();
        let current = state.place(link).is_some();
        match effect {
            _ if !current => {}
            Effect::None => {}
            Effect::Flush(count) => state.changes.flush(count),
            Effect::Change { forced, kept } => state.changes.add(forced, kept),
        }
        current || state.closing
    }

    /// A flush that is sent now.
    pub(crate) fn flush(&self) -> Effect {
        Effect::Flush(self.lock().changes.count())
    }

    /// A change that was made just now.
    pub(crate) fn change(&self, forced: bool, request: impl FnOnce() -> Request) -> Effect {
        let kept = (self.keeps > 0).then(request);
        Effect::Change { forced, kept }
    }

    /// Whether one more change with so much payload can be kept without a flush.
    pub(crate) fn has_room(&self, payload: u64) -> bool {
        self.keeps == 0 || self.lock().changes.has_room(payload, self.keeps)
    }

    /// How often changes may have been lost.
    pub(crate) fn tears(&self) -> u64 {
        self.lock().changes.tears()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    pub(super) fn count(&self) -> usize {
        self.lock().open().count()
    }

    pub(super) fn status(&self) -> ConnectionState {
        self.lock().status.clone()
    }

    pub(super) fn disconnect(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let mut state = self.lock();
        if mem::replace(&mut state.closing, true) {
            return Err(Error::lost(Lost::Disconnected));
        }
        let result = match &state.status {
            ConnectionState::Over(lost) | ConnectionState::Reconnecting { cause: lost, .. } => {
                Err(Error::Lost(lost.clone()))
            }
            _ => Ok(()),
        };
        let links: Vec<_> = state.open().cloned().collect();
        self.tell(state);
        let ended = disconnect(&links, deadline);
        let mut state = self.lock();
        if !state.is_over() {
            state.status = ConnectionState::Over(Arc::new(Lost::Disconnected));
        }
        self.tell(state);
        result.and(ended)
    }
}
