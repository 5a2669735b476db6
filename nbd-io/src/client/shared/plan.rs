//! What the connections of a client have in common.

use super::{
    link::{Keeper, Link, LinkLimits, Stream},
    options::ConnectOptions,
    pool::Pool,
};
use crate::{
    client::{Connected, Error, Facts, LinkLog, Lost, Reconnect, SharedLog},
    runtime::Network,
};
use nbd_proto::Uri;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Weak},
};

/// How a client's connections are made and what they have in common.
pub(super) struct Plan<R> {
    pub(super) options: ConnectOptions<R>,
    /// Where the server is, if more connections can be made.
    pub(super) uri: Option<Uri>,
    pub(super) facts: Facts,
    /// What was changed and may not be on stable storage, if lost connections are replaced.
    pub(super) log: Option<SharedLog>,
}

impl<R: Network> Plan<R> {
    pub(super) fn new(
        options: ConnectOptions<R>,
        uri: Option<Uri>,
        first: &Connected<Stream>,
    ) -> Self {
        let facts = Facts::new(&first.transmission, first.encrypted);
        let policy = options.reconnect.as_ref().filter(|_| uri.is_some());
        let log = policy.map(|policy| SharedLog::new(policy, &facts.export));
        Self {
            options,
            uri,
            facts,
            log,
        }
    }

    pub(super) fn link(&self, connected: Connected<Stream>) -> Arc<Link> {
        let Self { options, .. } = self;
        let runtime = options.runtime.clone();
        let reconnects = self.reconnects();
        let limits = LinkLimits {
            timeout: options.request_timeout,
            bytes_in_flight: options.bytes_in_flight,
            lose_when_silent: options.lose_when_silent.unwrap_or(reconnects),
            clock: Box::new(move || runtime.now()),
        };
        Arc::new(Link::new(
            connected.transport,
            connected.transmission,
            limits,
            self.log.clone().map(LinkLog::new),
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
        if let Some(what) = self.facts.differs(&facts, self.policy()) {
            link.close();
            self.keep(Weak::new(), link);
            return Err(Error::lost(Lost::Changed { what }));
        }
        Ok(link)
    }

    /// Starts the task behind a connection, which tells the pool when that takes no requests any
    /// more.
    pub(super) fn keep(&self, pool: Weak<Pool<R>>, link: Arc<Link>) {
        // It is made here, because a runtime that is shut down drops tasks that it has never begun.
        let mut keeper = Keeper::new(link.clone(), self.options.runtime.clone());
        let mut told = false;
        self.options.runtime.spawn(poll_fn(move |cx| {
            let polled = Pin::new(&mut keeper).poll(cx);
            if !told && link.load().is_none() {
                told = true;
                if let Some(pool) = pool.upgrade() {
                    pool.notice(&link);
                }
            }
            polled.map(drop)
        }));
    }

    /// Whether and how connections that are lost are replaced.
    pub(super) fn policy(&self) -> Option<&Reconnect> {
        self.options
            .reconnect
            .as_ref()
            .filter(|_| self.reconnects())
    }

    /// Whether connections that are lost are replaced.
    pub(super) const fn reconnects(&self) -> bool {
        self.log.is_some()
    }
}
