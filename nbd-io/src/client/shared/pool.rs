//! The connections of a client.

mod joining;

pub(super) use joining::Joined;

use super::{
    link::{Link, Request, Stream},
    plan::Plan,
    watchers::{Place, Watchers},
};
use crate::{
    client::{Changes, Connected, ConnectionState, Error, Lost},
    runtime::Network,
};
use nbd_proto::CommandFlags;
use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

/// The connections of a client. When it is dropped, they are closed.
pub(super) struct Pool<R> {
    pub(super) plan: Arc<Plan<R>>,
    state: Mutex<State>,
}

struct State {
    slots: Vec<Slot>,
    status: ConnectionState,
    /// The client wants no connections any more.
    closing: bool,
    changes: Changes,
    /// The connection over which what is kept is being sent again.
    repairer: Option<usize>,
    watchers: Watchers,
}

/// What there is of one of the connections that are wanted.
#[derive(Debug)]
enum Slot {
    Open(Arc<Link>),
    /// It is being made anew.
    Trying,
    /// It could not be made anew, and is tried again when one is lost that has lasted.
    Resting,
    /// There will be none any more.
    Ended,
}

impl State {
    fn open(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Open(link) => Some(link),
            Slot::Trying | Slot::Resting | Slot::Ended => None,
        })
    }

    fn has(&self, link: &Arc<Link>) -> bool {
        self.open().any(|open| Arc::ptr_eq(open, link))
    }

    const fn is_over(&self) -> bool {
        matches!(self.status, ConnectionState::Over(_))
    }

    fn publish(&mut self, index: usize, link: &Arc<Link>) {
        self.slots[index] = Slot::Open(link.clone());
        self.status = ConnectionState::Connected;
    }

    /// The client is over if there is no connection and none is being made.
    fn settle(&mut self, why: impl FnOnce() -> Arc<Lost>) {
        let alive = |slot: &Slot| matches!(slot, Slot::Open(_) | Slot::Trying);
        if !self.slots.iter().any(alive) && !self.is_over() {
            self.status = ConnectionState::Over(why());
        }
    }
}

/// Releases the lock and wakes everybody who waits for a change.
fn changed(mut state: MutexGuard<'_, State>) {
    let watchers = state.watchers.take();
    drop(state);
    watchers.into_iter().for_each(|(_, waker)| waker.wake());
}

/// Releases the lock and waits for a change.
fn wait<T>(mut state: MutexGuard<'_, State>, place: &mut Place, cx: &Context<'_>) -> Poll<T> {
    let old = state.watchers.watch(place, cx.waker());
    drop(state);
    drop(old);
    Poll::Pending
}

impl<R: Network> Pool<R> {
    /// Makes the other connections that are wanted, if the server lets a client have several.
    pub(super) async fn open(plan: Plan<R>, first: Connected<Stream>) -> Result<Arc<Self>, Error> {
        let link = plan.link(first);
        let pool = Arc::new(Self {
            state: Mutex::new(State {
                slots: Vec::new(),
                status: ConnectionState::Connected,
                closing: false,
                changes: Changes::default(),
                repairer: None,
                watchers: Watchers::default(),
            }),
            plan: Arc::new(plan),
        });
        pool.add(link);
        let plan = &pool.plan;
        // C-189
        if plan.facts.export.can_multi_conn() && plan.uri.is_some() {
            for _ in 1..plan.options.connections {
                // C-190
                pool.add(plan.another().await?);
            }
        }
        Ok(pool)
    }

    fn add(self: &Arc<Self>, link: Arc<Link>) {
        let mut state = self.lock();
        let index = state.slots.len();
        state.slots.push(Slot::Trying);
        state.publish(index, &link);
        drop(state);
        self.plan.tend(Arc::downgrade(self), index, link);
    }

    /// A connection was lost, after it had `lasted` or not. Whether to make a new one.
    pub(super) fn lost(&self, index: usize, lost: &Arc<Lost>, lasted: bool) -> bool {
        let export = &self.plan.facts.export;
        let keeps = self.plan.kept() > 0;
        let mut state = self.lock();
        let again = self.plan.reconnects() && !state.closing && !state.is_over();
        let next = if again { Slot::Trying } else { Slot::Ended };
        let before = mem::replace(&mut state.slots[index], next);
        let mut given_up = Vec::new();
        if again && matches!(before, Slot::Open(_)) {
            for slot in &mut state.slots {
                // If the server has crashed, the others are dead too, but what they have received
                // before may not be read yet. No answer of that time may count as one of the new
                // server's, whose flush would be taken to cover it.
                // Those that rest are left alone if nothing says that it will go better now, or they
                // would be tried in turn without end.
                if lasted && matches!(slot, Slot::Resting)
                    || matches!(slot, Slot::Open(_)) && !export.is_read_only()
                {
                    given_up.push(mem::replace(slot, Slot::Trying));
                }
            }
            if export.can_flush() && !export.is_read_only() {
                state.changes.tear(keeps);
                state.repairer = state.repairer.filter(|_| !keeps);
            }
        }
        if again && state.open().next().is_none() {
            let cause = lost.clone();
            state.status = ConnectionState::Reconnecting { attempt: 0, cause };
        }
        state.settle(|| lost.clone());
        changed(state);
        for slot in given_up {
            if let Slot::Open(link) = slot {
                link.abort(Lost::GivenUp);
            }
        }
        again
    }

    /// Nobody is there any more who makes a connection anew.
    pub(super) fn ended(&self, index: usize) {
        let why = Arc::new(Lost::Disconnected);
        self.lost(index, &why, false);
        let mut state = self.lock();
        state.slots[index] = Slot::Ended;
        state.settle(|| why);
        changed(state);
    }

    /// Whether there is no connection and will be none.
    pub(super) fn is_over(&self) -> bool {
        let reconnects = self.plan.reconnects();
        let state = self.lock();
        let alive = reconnects || state.open().any(|link| !link.is_lost());
        !alive || state.is_over()
    }

    /// The connection that has the least to do, once there is one.
    pub(super) fn poll_link(
        &self,
        place: &mut Place,
        cx: &Context<'_>,
    ) -> Poll<Result<Arc<Link>, Error>> {
        let reconnects = self.plan.reconnects();
        let state = self.lock();
        if let [Slot::Open(only)] = &state.slots[..]
            && (!reconnects || only.load().is_some())
        {
            return Poll::Ready(Ok(only.clone()));
        }
        let usable = state.open().filter_map(|link| Some((link.load()?, link)));
        if let Some((_, best)) = usable.min_by_key(|(load, _)| *load) {
            return Poll::Ready(Ok(best.clone()));
        }
        if let ConnectionState::Over(lost) = &state.status {
            return Poll::Ready(Err(Error::Lost(lost.clone())));
        }
        if state.closing {
            return Poll::Ready(Err(Error::lost(Lost::Disconnected)));
        }
        if !reconnects && let Some(ending) = state.open().next() {
            // It knows how it ends.
            return Poll::Ready(Ok(ending.clone()));
        }
        wait(state, place, cx)
    }

    /// Whether one more change can be kept without a flush.
    pub(super) fn has_room(&self, request: &Request) -> bool {
        let limit = self.plan.kept();
        limit == 0 || self.lock().changes.has_room(request.weight(), limit)
    }

    /// A change was answered. If the connection was lost meanwhile, it counts for nothing.
    pub(super) fn acknowledge(&self, link: &Arc<Link>, request: &Request) -> bool {
        let keeps = self.plan.kept() > 0;
        let mut state = self.lock();
        let current = state.has(link);
        if current {
            let kept = keeps.then(|| request.clone());
            let forced = request.has(CommandFlags::FUA);
            state.changes.add(forced, kept);
        }
        current
    }

    /// A flush was answered that was sent when there were `count` changes. If the connection was
    /// lost meanwhile, it counts for nothing.
    pub(super) fn flushed(&self, link: &Arc<Link>, count: u64) -> bool {
        let mut state = self.lock();
        let current = state.has(link);
        if current {
            state.changes.flush(count);
        }
        current
    }
}

impl<R> Pool<R> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a future that waits for a change, which leaves it when it is dropped.
    pub(super) const fn watch(&self) -> Watch<'_, R> {
        Watch {
            pool: self,
            place: None,
        }
    }

    pub(super) fn status(&self) -> ConnectionState {
        self.lock().status.clone()
    }

    pub(super) fn poll_status(
        &self,
        known: &ConnectionState,
        place: &mut Place,
        cx: &Context<'_>,
    ) -> Poll<ConnectionState> {
        let state = self.lock();
        if state.status.is_same(known) {
            return wait(state, place, cx);
        }
        Poll::Ready(state.status.clone())
    }

    /// Waits until the client wants no connections any more.
    pub(super) fn poll_unwanted(&self, place: &mut Place, cx: &Context<'_>) -> Poll<()> {
        let state = self.lock();
        if state.closing || state.is_over() {
            return Poll::Ready(());
        }
        wait(state, place, cx)
    }

    /// How many connections there are.
    pub(super) fn count(&self) -> usize {
        self.lock().open().count()
    }

    /// Takes no more requests. `None` if that was done before.
    pub(super) fn close(&self) -> Option<Vec<Arc<Link>>> {
        let mut state = self.lock();
        if mem::replace(&mut state.closing, true) {
            return None;
        }
        let links: Vec<_> = state.open().cloned().collect();
        if links.is_empty() && !state.is_over() {
            state.status = ConnectionState::Over(Arc::new(Lost::Disconnected));
        }
        changed(state);
        for link in &links {
            link.close();
        }
        Some(links)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// How many changes were answered.
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes.count()
    }

    /// How often changes may have been lost.
    pub(super) fn tears(&self) -> u64 {
        self.lock().changes.tears()
    }

    #[cfg(test)]
    pub(super) fn watchers(&self) -> usize {
        self.lock().watchers.len()
    }
}

impl<R> Drop for Pool<R> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<R> fmt::Debug for Pool<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Pool")
            .field("facts", &self.plan.facts)
            .field("status", &state.status)
            .field("slots", &state.slots)
            .finish_non_exhaustive()
    }
}

/// A place among those who wait for a change of a client's connections.
pub(super) struct Watch<'a, R> {
    pool: &'a Pool<R>,
    pub(super) place: Place,
}

impl<R> Drop for Watch<'_, R> {
    fn drop(&mut self) {
        if self.place.is_some() {
            let old = self.pool.lock().watchers.leave(self.place);
            drop(old);
        }
    }
}
