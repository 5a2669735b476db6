//! How connections that are made anew come in.

use super::{Pool, Slot, changed, wait};
use crate::{
    client::{
        ConnectionState, Lost,
        shared::{
            link::{Link, Request},
            watchers::Place,
        },
    },
    runtime::Network,
};
use std::{
    sync::Arc,
    task::{Context, Poll},
};

/// What became of a connection that was made anew, or what has to be done with it.
#[derive(Debug)]
pub(in super::super) enum Joined {
    Published,
    Closed,
    /// What is kept is to be sent over it.
    Repair,
    /// Another connection is to be asked whether it still talks to the server.
    Ask(Arc<Link>),
}

impl<R: Network> Pool<R> {
    /// Takes note of an attempt.
    pub(in super::super) fn trying(&self, number: u32) {
        let mut state = self.lock();
        if let ConnectionState::Reconnecting { attempt, .. } = &mut state.status {
            *attempt = number;
            changed(state);
        }
    }

    /// Publishes a new connection, or says what has to be done before. `asked` is one that was
    /// asked, and whether it answered.
    pub(in super::super) fn poll_join(
        &self,
        index: usize,
        link: &Arc<Link>,
        asked: Option<&(Arc<Link>, bool)>,
        place: &mut Place,
        cx: &Context<'_>,
    ) -> Poll<Joined> {
        let export = &self.plan.facts.export;
        let mut state = self.lock();
        if state.has(link) {
            return Poll::Ready(Joined::Published);
        }
        if state.closing || state.is_over() {
            return Poll::Ready(Joined::Closed);
        }
        if state.changes.is_torn() {
            if state.repairer.is_some() {
                return wait(state, place, cx);
            }
            state.repairer = Some(index);
            return Poll::Ready(Joined::Repair);
        }
        // The others may be dead and not know it yet. If the server has crashed since, this one
        // knows nothing of what they wrote. One that still answers proves the contrary.
        let other = state.open().next().cloned();
        if export.can_flush()
            && !export.is_read_only()
            && let Some(other) = other
        {
            match asked.filter(|(asked, _)| state.has(asked)) {
                None => return Poll::Ready(Joined::Ask(other)),
                Some((_, true)) => {}
                Some((_, false)) => return wait(state, place, cx),
            }
        }
        state.publish(index, link);
        changed(state);
        Poll::Ready(Joined::Published)
    }

    pub(in super::super) fn kept(&self) -> Vec<Request> {
        self.lock().changes.kept()
    }

    /// What is kept was sent over a new connection, which is published with that.
    pub(in super::super) fn repaired(&self, index: usize, link: &Arc<Link>) {
        let mut state = self.lock();
        if state.repairer == Some(index) && !state.closing && !state.is_over() {
            state.repairer = None;
            state.changes.mend();
            state.publish(index, link);
        }
        changed(state);
    }

    /// What is kept could not be sent over a new connection.
    pub(in super::super) fn not_repaired(&self, index: usize) {
        let mut state = self.lock();
        if state.repairer == Some(index) {
            state.repairer = None;
        }
        changed(state);
    }

    /// A connection cannot be made anew.
    pub(in super::super) fn rest(&self, index: usize, why: Lost) {
        let mut state = self.lock();
        state.slots[index] = Slot::Resting;
        let why = if state.closing {
            Lost::Disconnected
        } else {
            why
        };
        state.settle(|| Arc::new(why));
        changed(state);
    }

    /// Waits until a connection that could not be made anew is to be tried again. Whether it ever is.
    pub(in super::super) fn poll_rest(
        &self,
        index: usize,
        place: &mut Place,
        cx: &Context<'_>,
    ) -> Poll<bool> {
        let state = self.lock();
        if state.closing || state.is_over() {
            return Poll::Ready(false);
        }
        match &state.slots[index] {
            Slot::Resting => wait(state, place, cx),
            Slot::Open(_) | Slot::Trying | Slot::Ended => Poll::Ready(true),
        }
    }
}
