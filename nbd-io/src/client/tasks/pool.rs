//! The connections of a client.

use super::{common::Opened, link::Link, range_guard::SharedRangeLocks, supervisor::Supervisor};
use crate::{
    client::{Common, ConnectionState, DialId, Epoch, Error, Join, Loss, Lost, Membership, Next},
    runtime::Network,
    watchers::{WatcherId, Watchers},
};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// The connections of a client. When it is dropped, they are closed.
///
/// [`Membership`] decides; a [`Supervisor`] dials, and the task behind each connection reports when
/// that is over.
pub(super) struct Pool<R> {
    pub(super) common: Arc<Common<R>>,
    /// Changes of the same bytes, where they have to be kept in order.
    pub(super) range_locks: Arc<SharedRangeLocks>,
    /// The connection, if there is never another one.
    only: Option<Arc<Link>>,
    state: Mutex<State>,
}

struct State {
    members: Membership<Link>,
    watchers: Watchers,
}

impl State {
    /// The connection that has the least to do, of those that take requests.
    fn best(&self) -> Option<&Arc<Link>> {
        let open = self.members.open();
        let usable = open.filter_map(|link| Some((link.load()?, link)));
        let best = usable.min_by_key(|(load, _)| *load);
        best.map(|(_, link)| link)
    }

    /// A connection that is over, or takes no requests any more.
    fn ended(&self) -> Option<(Arc<Link>, Arc<Lost>)> {
        let closed = self.members.open().filter(|link| link.load().is_none());
        let ended = |link: &Arc<Link>| Some((link.clone(), link.ended()?));
        closed.into_iter().find_map(ended)
    }
}

/// Releases the lock and waits for a change.
fn wait<T>(mut state: MutexGuard<'_, State>, place: &mut WatcherId, cx: &Context<'_>) -> Poll<T> {
    let old = state.watchers.watch(place, cx.waker());
    drop(state);
    drop(old);
    Poll::Pending
}

impl<R: Network> Pool<R> {
    /// Makes the other connections that are wanted, if the server lets a client have several.
    pub(super) async fn open(common: Common<R>, first: Opened<R>) -> Result<Arc<Self>, Error> {
        let policy = common.policy().cloned();
        let reconnects = policy.is_some();
        let pool = Arc::new(Self {
            only: (common.connections() == 1 && !reconnects && !common.observer.measures())
                .then(|| first.link.clone()),
            state: Mutex::new(State {
                members: Membership::new(policy, &common.negotiated.export)
                    .observed(common.observer.clone()),
                watchers: Watchers::default(),
            }),
            common: Arc::new(common),
            range_locks: Arc::default(),
        });
        pool.add(first);
        let common = &pool.common;
        for _ in 1..common.connections() {
            // C-190
            pool.add(Box::pin(common.another()).await?);
        }
        if reconnects {
            let supervisor = Supervisor::new(&pool);
            common.runtime().spawn(supervisor);
        }
        Ok(pool)
    }

    fn add(self: &Arc<Self>, opened: Opened<R>) {
        let now = self.common.runtime().now();
        let link = &opened.link;
        let mut state = self.lock();
        state.members.add(link.clone(), now);
        link.log().inspect(|log| log.join());
        drop(state);
        self.common.observer.deliver();
        self.common.keep(Arc::downgrade(self), opened);
    }

    /// The next dial, once there is one.
    pub(super) fn poll_next(&self, place: &mut WatcherId, cx: &Context<'_>) -> Next {
        let mut state = self.lock();
        let next = state.members.next(self.common.runtime().now());
        match next {
            Next::Dial { .. } => self.changed(state),
            Next::Wait(_) => {
                let _: Poll<()> = wait(state, place, cx);
            }
            Next::Over => {}
        }
        next
    }

    /// Whether a dial is still wanted.
    pub(super) fn is_wanted(&self, dial: DialId) -> bool {
        self.lock().members.is_wanted(dial)
    }

    /// A connection may be over, or take no requests any more.
    pub(super) fn notice(&self, link: &Arc<Link>) {
        if let Some(lost) = link.ended() {
            self.lost(link, &lost);
        }
    }

    fn lost(&self, link: &Arc<Link>, lost: &Arc<Lost>) {
        let now = self.common.runtime().now();
        let mut state = self.lock();
        if let Some(loss) = state.members.lost(link, lost, now) {
            self.give_up(state, loss);
        }
    }

    fn give_up(&self, state: MutexGuard<'_, State>, loss: Loss<Link>) {
        if loss.ends_epoch
            && let Some(log) = &self.common.log
        {
            log.lock().end_epoch();
        }
        self.changed(state);
        for link in loss.given_up {
            // A server that shuts down still answers the requests that it holds.
            if link.ended().is_none() {
                link.abort(Lost::GivenUp);
            }
        }
    }

    /// Has all connections made anew.
    pub(super) fn redial(&self) -> Result<(), Error> {
        if !self.common.reconnects() {
            return Err(Error::Unsupported {
                what: "this client makes no new connections: see `ConnectOptions::reconnect`",
            });
        }
        let now = self.common.runtime().now();
        let mut state = self.lock();
        match state.members.redial(now) {
            Some(loss) => {
                self.give_up(state, loss);
                Ok(())
            }
            None => Err(match state.members.state() {
                ConnectionState::Over(lost) => Error::Lost(lost.clone()),
                _ => Error::lost(Lost::Disconnected),
            }),
        }
    }

    /// Takes note of connections that are over and that no call has noticed.
    fn sweep(&self) -> MutexGuard<'_, State> {
        loop {
            let state = self.lock();
            let Some((link, lost)) = state.ended() else {
                return state;
            };
            drop(state);
            self.lost(&link, &lost);
        }
    }

    /// Makes a new connection a member once that may be, or returns the step that comes before.
    /// `replayed` is the epoch for which it has replayed.
    pub(super) fn poll_join(
        &self,
        dial: DialId,
        link: &Arc<Link>,
        replayed: Option<Epoch>,
        place: &mut WatcherId,
        cx: &Context<'_>,
    ) -> Poll<Result<Join<Link>, Error>> {
        let now = self.common.runtime().now();
        let mut state = self.lock();
        if let Some(lost) = link.ended() {
            return Poll::Ready(Err(Error::Lost(lost)));
        }
        let members = &mut state.members;
        let mut needs_replay = false;
        if let Some(log) = &self.common.log {
            let mut log = log.lock();
            if let Some(epoch) = replayed
                && members.replayed(dial)
            {
                log.replayed(epoch);
            }
            needs_replay = log.needs_replay();
        }
        let join = members.join(dial, link, needs_replay, now);
        match join {
            Join::Wait => return wait(state, place, cx),
            Join::Joined => {
                link.log().inspect(|log| log.join());
            }
            Join::Replay | Join::Probe(_) | Join::Unwanted => {}
        }
        self.changed(state);
        Poll::Ready(Ok(join))
    }

    /// A member has answered a probe.
    pub(super) fn probed(&self, dial: DialId, other: &Arc<Link>) {
        self.lock().members.probed(dial, other);
    }

    /// A dial has failed.
    pub(super) fn failed(&self, dial: DialId, error: Error) {
        let now = self.common.runtime().now();
        let mut state = self.lock();
        state.members.failed(dial, error, now);
        self.changed(state);
    }

    /// Whether there is no connection and will be none.
    pub(super) fn is_over(&self) -> bool {
        self.sweep().members.is_over()
    }

    /// Number of connections.
    pub(super) fn count(&self) -> usize {
        self.sweep().members.open().count()
    }

    pub(super) fn status(&self) -> ConnectionState {
        self.sweep().members.state().clone()
    }

    /// The connection that has the least to do, once there is one.
    pub(super) fn poll_link(
        &self,
        place: &mut WatcherId,
        cx: &Context<'_>,
    ) -> Poll<Result<Arc<Link>, Error>> {
        let mut state = self.lock();
        if let Some(best) = state.best() {
            return Poll::Ready(Ok(best.clone()));
        }
        drop(state);
        state = self.sweep();
        if let Some(best) = state.best() {
            return Poll::Ready(Ok(best.clone()));
        }
        if let ConnectionState::Over(lost) = state.members.state() {
            return Poll::Ready(Err(Error::Lost(lost.clone())));
        }
        if state.members.is_closing() {
            return Poll::Ready(Err(Error::lost(Lost::Disconnected)));
        }
        wait(state, place, cx)
    }
}

impl<R> Pool<R> {
    /// Releases the lock, wakes all tasks that wait for a change, and delivers events.
    fn changed(&self, mut state: MutexGuard<'_, State>) {
        let watchers = state.watchers.take();
        drop(state);
        watchers.for_each(Waker::wake);
        self.common.observer.deliver();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection of a client that never has another one, and whose requests are not measured.
    /// It may be over.
    pub(super) fn only(&self) -> Option<&Link> {
        self.only.as_deref()
    }

    /// A place for a future that waits for a change, which leaves it when it is dropped.
    pub(super) const fn watch(&self) -> Watch<'_, R> {
        Watch {
            pool: self,
            place: None,
        }
    }

    pub(super) fn poll_status(
        &self,
        known: &ConnectionState,
        place: &mut WatcherId,
        cx: &Context<'_>,
    ) -> Poll<ConnectionState> {
        let state = self.lock();
        if state.members.state().is_same(known) {
            return wait(state, place, cx);
        }
        Poll::Ready(state.members.state().clone())
    }

    /// Takes no more requests. `None` if that was done before.
    pub(super) fn close(&self) -> Option<Vec<Arc<Link>>> {
        let mut state = self.lock();
        let links = state.members.close()?;
        self.changed(state);
        for link in &links {
            link.close();
        }
        Some(links)
    }

    /// The supervisor has ended: no connection is made any more.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.members.end();
        self.changed(state);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().members.is_closing()
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
            .field("negotiated", &self.common.negotiated)
            .field("members", &state.members)
            .finish_non_exhaustive()
    }
}

/// A place among those who wait for a change of a client's connections.
pub(super) struct Watch<'a, R> {
    pool: &'a Pool<R>,
    pub(super) place: WatcherId,
}

impl<R> Drop for Watch<'_, R> {
    fn drop(&mut self) {
        if self.place.is_some() {
            let old = self.pool.lock().watchers.leave(self.place);
            drop(old);
        }
    }
}
