//! The connections of a client.

mod dial;
mod reconnecting;

use reconnecting::LOOK;
pub(crate) use reconnecting::ReconnectingPool;

use crate::{
    Blocking, Error, Lost,
    link::{Link, LinkLimits, disconnect_deadline},
    range_guard::SharedRangeLocks,
    stream::Negotiating,
};
use nbd_io::client::{
    ClientEvent, Common, Connected, ConnectionState, LinkLog, Negotiated, Observer, Watched,
};
use nbd_proto::Command;
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The connections of a client. When it is dropped, all of them are sent NBD_CMD_DISC.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) negotiated: Negotiated,
    /// Changes of the same bytes, where they have to be kept apart.
    pub(crate) range_locks: Arc<SharedRangeLocks>,
    /// Time limit of a request.
    pub(crate) timeout: Option<Duration>,
    /// Receiver of events.
    observer: Observer,
    /// Whether that takes slow requests.
    measures: bool,
    /// Number of reported losses of connections that are not replaced.
    losses: AtomicUsize,
    links: Links,
}

#[derive(Debug)]
enum Links {
    One(Arc<Link>),
    Several(Vec<Arc<Link>>),
    /// Those that are lost are made anew.
    ReconnectingPool(Box<ReconnectingPool>),
}

impl Pool {
    /// Makes the other connections that are wanted, if the server lets a client have several.
    pub(crate) fn open(
        common: Common<Blocking>,
        first: Connected<Negotiating>,
    ) -> impl Future<Output = Result<Self, Error>> + Send {
        // The future is small without it.
        let first = link(&common, first);
        async { Self::with_others(common, first).await }
    }

    async fn with_others(common: Common<Blocking>, first: Arc<Link>) -> Result<Self, Error> {
        let negotiated = common.negotiated.clone();
        let observer = common.observer.clone();
        let timeout = common.connector.config.request_timeout;
        let mut links = vec![first];
        for _ in 1..common.connections() {
            // C-190
            let driver = &common.connector.driver;
            links.push(Box::pin(another(&common, driver, None)).await?);
        }
        if !common.reconnects() {
            for connections in 1..=links.len() {
                observer.push(|| ClientEvent::Connected {
                    connections,
                    attempts: 0,
                });
            }
        }
        let links = match common.log.clone() {
            Some(log) => {
                Links::ReconnectingPool(Box::new(ReconnectingPool::new(common, log, links)))
            }
            None if links.len() == 1 => Links::One(links[0].clone()),
            None => Links::Several(links),
        };
        observer.deliver();
        Ok(Self {
            negotiated,
            range_locks: Arc::default(),
            timeout,
            measures: observer.measures(),
            observer,
            losses: AtomicUsize::new(0),
            links,
        })
    }

    /// The connection with the fewest requests in flight; if all are over, one of those, which
    /// knows how. If lost ones are made anew, the pool that does that.
    pub(crate) fn link(&self) -> Result<&Arc<Link>, &ReconnectingPool> {
        match &self.links {
            Links::One(only) => Ok(only),
            Links::Several(links) => {
                let load = |link: &&Arc<Link>| link.load().unwrap_or(usize::MAX);
                Ok(links.iter().min_by_key(load).unwrap_or(&links[0]))
            }
            Links::ReconnectingPool(reconnecting) => Err(reconnecting),
        }
    }

    /// The connections, if the client has a policy to make lost ones anew.
    pub(crate) const fn reconnecting(&self) -> Option<&ReconnectingPool> {
        match &self.links {
            Links::One(_) | Links::Several(_) => None,
            Links::ReconnectingPool(reconnecting) => Some(reconnecting),
        }
    }

    /// Number of times that answered writes may have been lost before a flush covered them.
    pub(crate) fn write_losses(&self) -> u64 {
        let reconnecting = self.reconnecting();
        reconnecting.map_or(0, |reconnecting| reconnecting.log.lock().losses())
    }

    fn fixed(&self) -> &[Arc<Link>] {
        match &self.links {
            Links::One(only) => std::slice::from_ref(only),
            Links::Several(links) => links,
            Links::ReconnectingPool(_) => &[],
        }
    }

    /// Whether requests are measured, because slow ones are reported.
    #[inline]
    pub(crate) const fn measures(&self) -> bool {
        self.measures
    }

    /// Measures a request until the result is dropped, if slow ones are reported. No lock may be
    /// held then.
    #[inline]
    pub(crate) fn watch(
        &self,
        command: Command,
        range: impl FnOnce() -> Range<u64>,
    ) -> Option<Watched> {
        self.measures
            .then(|| self.observer.watch(command, range()))?
    }

    /// Reports connections that are lost and not replaced, each once.
    #[cold]
    pub(crate) fn report_losses(&self) {
        let links = self.fixed();
        let is_loss = |lost: &Arc<Lost>| !matches!(**lost, Lost::Disconnected);
        let causes: Vec<_> = links
            .iter()
            .filter_map(|link| link.lost())
            .filter(is_loss)
            .collect();
        let before = self.losses.fetch_max(causes.len(), Ordering::Relaxed);
        for (at, cause) in causes.into_iter().enumerate().skip(before) {
            let connections = links.len() - at - 1;
            self.observer.push(|| ClientEvent::Lost {
                cause: cause.clone(),
                connections,
            });
            if connections == 0 {
                self.observer.push(|| ClientEvent::GaveUp { cause });
            }
        }
        self.observer.deliver();
    }

    /// Has all connections made anew.
    pub(crate) fn redial(&self) -> Result<(), Error> {
        match &self.links {
            Links::One(_) | Links::Several(_) => Err(Error::Unsupported {
                what: "this client makes no new connections: see `ConnectOptions::reconnect`",
            }),
            Links::ReconnectingPool(reconnecting) => reconnecting.redial(),
        }
    }

    /// Number of connections.
    pub(crate) fn count(&self) -> usize {
        if let Links::ReconnectingPool(reconnecting) = &self.links {
            return reconnecting.count();
        }
        self.fixed()
            .iter()
            .filter(|link| ended(link).is_none())
            .count()
    }

    pub(crate) fn status(&self) -> ConnectionState {
        if let Links::ReconnectingPool(reconnecting) = &self.links {
            return reconnecting.status();
        }
        let state = self.fixed_status();
        self.report_losses();
        state
    }

    /// Waits until the state is another one than `known`, or until a time.
    pub(crate) fn state_changed(
        &self,
        known: &ConnectionState,
        until: Option<Instant>,
    ) -> ConnectionState {
        if let Links::ReconnectingPool(reconnecting) = &self.links {
            return reconnecting.state_changed(known, until);
        }
        loop {
            let state = self.status();
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if !state.is_same(known) || left.is_some_and(|left| left.is_zero()) {
                return state;
            }
            // No thread reads meanwhile unless a call needs it, so that a loss is noticed only by
            // looking at the sockets.
            thread::sleep(left.map_or(LOOK, |left| left.min(LOOK)));
        }
    }

    fn fixed_status(&self) -> ConnectionState {
        let mut over = None;
        for link in self.fixed() {
            match ended(link) {
                None => return ConnectionState::Connected,
                lost => over = over.or(lost),
            }
        }
        ConnectionState::Over(over.unwrap_or_else(|| Arc::new(Lost::Disconnected)))
    }

    /// Ends the session on all connections.
    pub(crate) fn disconnect(&self) -> Result<(), Error> {
        let deadline = disconnect_deadline();
        if let Links::ReconnectingPool(reconnecting) = &self.links {
            return reconnecting.disconnect(deadline);
        }
        disconnect(self.fixed(), deadline)
    }
}

/// The end of a connection, if it has ended, also if no call has noticed.
fn ended(link: &Link) -> Option<Arc<Lost>> {
    link.check_idle();
    link.ended()
}

/// Ends the session on each of these, however it ends on the others.
fn disconnect(links: &[Arc<Link>], deadline: Option<Instant>) -> Result<(), Error> {
    let mut result = Ok(());
    for link in links {
        let ended = link.disconnect(deadline);
        result = result.and(ended);
    }
    result
}

/// Makes another connection like the first. `driver` waits for it, for this time at most.
async fn another(
    common: &Common<Blocking>,
    driver: &Blocking,
    within: Option<Duration>,
) -> Result<Arc<Link>, Error> {
    let connected = common.connector.connect(driver, within).await?;
    let compared = common.compare(&connected);
    // One that is of no use is closed by NBD_CMD_DISC.
    let link = link(common, connected);
    compared.map(|()| link)
}

fn link(common: &Common<Blocking>, connected: Connected<Negotiating>) -> Arc<Link> {
    let config = &common.connector.config;
    Arc::new(Link::new(
        connected.transport.stream,
        connected.transmission,
        LinkLimits {
            timeout: config.request_timeout,
            bytes_in_flight: config.bytes_in_flight,
            lose_when_silent: common.loses_when_silent(),
        },
        common.log.clone().map(LinkLog::new),
    ))
}
