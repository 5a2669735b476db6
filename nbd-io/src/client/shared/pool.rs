//! The connections of a client.

use super::{
    link::{Link, Request, Stream},
    options::ConnectOptions,
    reconnect::{Changes, ConnectionState, Joined, keep},
};
use crate::{
    client::{Connected, Error, Lost, longest},
    runtime::Network,
};
use nbd_proto::{
    BlockSizes, Command, ExportInfo, Mode, Uri,
    client::{Context, Transmission},
};
use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{self, Poll, Waker},
};

/// How a client's connections are made and what they have in common.
pub(super) struct Plan<R> {
    pub(super) options: ConnectOptions<R>,
    /// Where the server is, if more connections can be made.
    uri: Option<Uri>,
    pub(super) facts: Facts,
}

/// What does not change during transmission, and is the same on all connections.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) export: ExportInfo,
    pub(super) mode: Mode,
    pub(super) contexts: Vec<Context>,
    pub(super) blocks: BlockSizes,
    pub(super) encrypted: bool,
    /// The longest payload of one request, in bytes.
    pub(super) max_payload: u64,
    pub(super) max_zeroes: u64,
    /// The longest range of other requests, in bytes.
    pub(super) max_range: u64,
}

impl Facts {
    fn new(transmission: &Transmission, encrypted: bool) -> Self {
        Self {
            export: transmission.export().clone(),
            mode: transmission.mode(),
            contexts: transmission.contexts().to_vec(),
            blocks: transmission.block_sizes(),
            encrypted,
            max_payload: transmission.max_len(Command::Write),
            max_zeroes: longest(transmission, Command::WriteZeroes),
            max_range: transmission.max_len(Command::Trim),
        }
    }

    /// What another connection to the same export does not have in common with this one.
    fn differs(&self, other: &Self) -> Option<&'static str> {
        let (ours, theirs) = (&self.export, &other.export);
        [
            (ours.size == theirs.size, "its size"),
            (ours.flags == theirs.flags, "its flags"),
            (self.blocks == other.blocks, "its block sizes"),
            (self.contexts == other.contexts, "its meta contexts"),
            (self.mode == other.mode, "the headers that are agreed on"),
            (self.encrypted == other.encrypted, "whether there is TLS"),
        ]
        .into_iter()
        .find_map(|(same, what)| (!same).then_some(what))
    }
}

impl<R: Network> Plan<R> {
    pub(super) fn new(
        options: ConnectOptions<R>,
        uri: Option<Uri>,
        first: &Connected<Stream>,
    ) -> Self {
        Self {
            options,
            uri,
            facts: Facts::new(&first.transmission, first.encrypted),
        }
    }

    fn link(&self, connected: Connected<Stream>) -> Arc<Link> {
        let Self { options, .. } = self;
        Arc::new(Link::new(
            connected.transport,
            connected.transmission,
            options.request_timeout,
            options.bytes_in_flight,
        ))
    }

    /// Makes another connection like the first.
    pub(super) async fn another(self: &Arc<Self>) -> Result<Arc<Link>, Error> {
        let Some(uri) = &self.uri else {
            return Err(Error::lost(Lost::Closed));
        };
        let connected = self.options.open(uri).await?;
        let facts = Facts::new(&connected.transmission, connected.encrypted);
        let link = self.link(connected);
        if let Some(what) = self.facts.differs(&facts) {
            link.close();
            self.tend(Weak::new(), 0, link);
            return Err(Error::lost(Lost::Changed { what }));
        }
        Ok(link)
    }

    /// Starts the task behind a connection.
    fn tend(self: &Arc<Self>, pool: Weak<Pool<R>>, index: usize, link: Arc<Link>) {
        let task = keep(pool, self.clone(), index, link);
        self.options.runtime.spawn(task);
    }

    /// Whether connections that are lost are replaced.
    pub(super) const fn reconnects(&self) -> bool {
        self.uri.is_some() && self.options.reconnect.is_some()
    }

    /// How many bytes of writes are kept until they are flushed.
    fn kept(&self) -> u64 {
        match &self.options.reconnect {
            Some(policy) if self.uri.is_some() && self.facts.export.can_flush() => policy.kept,
            _ => 0,
        }
    }
}

/// The connections of a client. When it is dropped, they are closed.
pub(super) struct Pool<R> {
    pub(super) plan: Arc<Plan<R>>,
    state: Mutex<State>,
}

struct State {
    /// `None` while one is lost.
    links: Vec<Option<Arc<Link>>>,
    status: ConnectionState,
    /// The client wants no connections any more.
    closing: bool,
    changes: Changes,
    watchers: Vec<Waker>,
}

impl State {
    fn open(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.links.iter().flatten()
    }

    fn has(&self, link: &Arc<Link>) -> bool {
        self.open().any(|open| Arc::ptr_eq(open, link))
    }

    fn publish(&mut self, index: usize, link: &Arc<Link>) {
        self.links[index] = Some(link.clone());
        self.status = ConnectionState::Connected;
    }

    fn watch(&mut self, cx: &task::Context<'_>) {
        if !self.watchers.iter().any(|old| old.will_wake(cx.waker())) {
            self.watchers.push(cx.waker().clone());
        }
    }
}

/// Releases the lock and wakes everybody who waits for a change.
fn changed(mut state: MutexGuard<'_, State>) {
    let watchers = mem::take(&mut state.watchers);
    drop(state);
    watchers.into_iter().for_each(Waker::wake);
}

impl<R: Network> Pool<R> {
    /// Makes the other connections that are wanted, if the server lets a client have several.
    pub(super) async fn open(plan: Plan<R>, first: Connected<Stream>) -> Result<Arc<Self>, Error> {
        let link = plan.link(first);
        let pool = Arc::new(Self {
            state: Mutex::new(State {
                links: Vec::new(),
                status: ConnectionState::Connected,
                closing: false,
                changes: Changes::default(),
                watchers: Vec::new(),
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
        let index = state.links.len();
        state.links.push(Some(link.clone()));
        drop(state);
        self.plan.tend(Arc::downgrade(self), index, link);
    }

    /// A connection was lost. Whether to make a new one.
    pub(super) fn lost(&self, index: usize, lost: &Arc<Lost>) -> bool {
        let again = self.plan.reconnects();
        let keeps = self.plan.kept() > 0;
        let mut state = self.lock();
        let again = again && !state.closing;
        let was_current = state.links[index].take().is_some();
        let mut given_up = Vec::new();
        if again && was_current && !self.plan.facts.export.is_read_only() {
            // If the server has crashed, the others are dead too, but what they have received
            // before may not be read yet. No answer of that time may count as one of the new
            // server's, whose flush would be taken to cover it.
            given_up = state.links.iter_mut().filter_map(Option::take).collect();
            if self.plan.facts.export.can_flush() {
                state.changes.tear(keeps);
            }
        }
        if state.open().next().is_none() && !matches!(state.status, ConnectionState::Over(_)) {
            let cause = lost.clone();
            state.status = if again {
                ConnectionState::Reconnecting { attempt: 0, cause }
            } else {
                ConnectionState::Over(cause)
            };
        }
        let over = matches!(state.status, ConnectionState::Over(_));
        changed(state);
        for link in given_up {
            link.abort(Lost::GivenUp);
        }
        again && !over
    }

    /// Takes note of an attempt. Whether it is still wanted.
    pub(super) fn trying(&self, number: u32) -> bool {
        let mut state = self.lock();
        if state.closing || matches!(state.status, ConnectionState::Over(_)) {
            return false;
        }
        if let ConnectionState::Reconnecting { attempt, .. } = &mut state.status {
            *attempt = number;
        }
        changed(state);
        true
    }

    /// Publishes a new connection, or says what has to be done before. `asked` is one that was
    /// asked, and whether it answered.
    pub(super) fn poll_join(
        &self,
        index: usize,
        link: &Arc<Link>,
        asked: Option<&(Arc<Link>, bool)>,
        cx: &task::Context<'_>,
    ) -> Poll<Joined> {
        let export = &self.plan.facts.export;
        let mut state = self.lock();
        if state.has(link) {
            return Poll::Ready(Joined::Published);
        }
        if state.closing || matches!(state.status, ConnectionState::Over(_)) {
            return Poll::Ready(Joined::Closed);
        }
        if !state.changes.torn {
            // The others may be dead and not know it yet. If the server has crashed since, this
            // one knows nothing of what they wrote. One that still answers proves the contrary.
            let other = state.open().next().cloned();
            if export.can_flush()
                && !export.is_read_only()
                && let Some(other) = other
            {
                match asked.filter(|(asked, _)| state.has(asked)) {
                    None => return Poll::Ready(Joined::Ask(other)),
                    Some((_, true)) => {}
                    Some((_, false)) => {
                        state.watch(cx);
                        return Poll::Pending;
                    }
                }
            }
            state.publish(index, link);
            changed(state);
            return Poll::Ready(Joined::Published);
        }
        match state.changes.repairer {
            None => {
                state.changes.repairer = Some(index);
                Poll::Ready(Joined::Repair)
            }
            Some(_) => {
                state.watch(cx);
                Poll::Pending
            }
        }
    }

    pub(super) fn kept(&self) -> Vec<Request> {
        self.lock().changes.kept()
    }

    /// What is kept was sent over a new connection, which is published with that.
    pub(super) fn repaired(&self, index: usize, link: &Arc<Link>) {
        let mut state = self.lock();
        if state.changes.repairer == Some(index) && !state.closing {
            state.changes.repairer = None;
            state.changes.torn = false;
            state.publish(index, link);
        }
        changed(state);
    }

    pub(super) fn not_repaired(&self, index: usize) {
        let mut state = self.lock();
        if state.changes.repairer == Some(index) {
            state.changes.repairer = None;
        }
        changed(state);
    }

    /// No new connection can be made. The client is over if it has no other.
    pub(super) fn give_up(&self, why: Lost) {
        let mut state = self.lock();
        if state.open().next().is_none() && !matches!(state.status, ConnectionState::Over(_)) {
            let why = if state.closing {
                Lost::Disconnected
            } else {
                why
            };
            state.status = ConnectionState::Over(Arc::new(why));
        }
        changed(state);
    }
}

impl<R: Network> Pool<R> {
    /// Whether there is no connection and will be none.
    pub(super) fn is_over(&self) -> bool {
        let reconnects = self.plan.reconnects();
        let state = self.lock();
        let alive = reconnects || state.open().any(|link| !link.is_lost());
        !alive || matches!(state.status, ConnectionState::Over(_))
    }
}

impl<R> Pool<R> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> ConnectionState {
        self.lock().status.clone()
    }

    pub(super) fn poll_status(
        &self,
        known: &ConnectionState,
        cx: &task::Context<'_>,
    ) -> Poll<ConnectionState> {
        let mut state = self.lock();
        if state.status.is_same(known) {
            state.watch(cx);
            return Poll::Pending;
        }
        Poll::Ready(state.status.clone())
    }

    /// How many connections there are.
    pub(super) fn count(&self) -> usize {
        self.lock().open().count()
    }

    /// The connection that has the least to do, once there is one.
    pub(super) fn poll_link(&self, cx: &task::Context<'_>) -> Poll<Result<Arc<Link>, Error>> {
        let mut state = self.lock();
        if let [Some(only)] = &state.links[..]
            && only.is_open()
        {
            return Poll::Ready(Ok(only.clone()));
        }
        let usable = state.open().filter(|link| link.is_open());
        if let Some(best) = usable.min_by_key(|link| link.load()) {
            return Poll::Ready(Ok(best.clone()));
        }
        match &state.status {
            ConnectionState::Over(lost) => Poll::Ready(Err(Error::Lost(lost.clone()))),
            _ if state.closing => Poll::Ready(Err(Error::lost(Lost::Disconnected))),
            _ => {
                state.watch(cx);
                Poll::Pending
            }
        }
    }

    /// Takes no more requests. `None` if that was done before.
    pub(super) fn close(&self) -> Option<Vec<Arc<Link>>> {
        let mut state = self.lock();
        if mem::replace(&mut state.closing, true) {
            return None;
        }
        let links: Vec<_> = state.open().cloned().collect();
        if links.is_empty() && !matches!(state.status, ConnectionState::Over(_)) {
            state.status = ConnectionState::Over(Arc::new(Lost::Disconnected));
        }
        for link in &links {
            link.close();
        }
        changed(state);
        Some(links)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// How many changes were answered, and how often some may have been lost.
    pub(super) fn changes(&self) -> (u64, u64) {
        let state = self.lock();
        (state.changes.count, state.changes.tears)
    }
}

impl<R: Network> Pool<R> {
    /// Whether one more change can be kept without a flush.
    pub(super) fn has_room(&self, request: &Request) -> bool {
        let limit = self.plan.kept();
        limit == 0 || self.lock().changes.has_room(request, limit)
    }

    /// A change was answered. If the connection was lost meanwhile, it counts for nothing.
    pub(super) fn acknowledge(&self, link: &Arc<Link>, request: &Request) -> bool {
        let keeps = self.plan.kept() > 0;
        let mut state = self.lock();
        let current = state.has(link);
        if current {
            state.changes.add(request, keeps);
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
            .field("links", &state.links)
            .finish_non_exhaustive()
    }
}
