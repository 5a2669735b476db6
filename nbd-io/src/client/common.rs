//! The part that the connections of a client share.

use super::{
    Connected, Connector, Driver, Error, Lost, Negotiated, Observer, Reconnect, SharedLog,
    engine::Spare,
};
use bytes::BytesMut;
use std::sync::Arc;

/// The way in which a client's connections are made, and the state that they share.
#[derive(Debug)]
pub struct Common<D> {
    /// Makes them.
    pub connector: Connector<D>,
    /// The result of the negotiation.
    pub negotiated: Negotiated,
    /// Changes that may not be on stable storage, if lost connections are replaced.
    pub log: Option<SharedLog>,
    /// Receiver of events of this client.
    pub observer: Observer,
    /// Memory of long reads that is used again.
    pub spare: Arc<Spare<BytesMut>>,
}

impl<D: Driver> Common<D> {
    /// The common part of a client with this first connection.
    #[must_use]
    pub fn new(connector: Connector<D>, first: &Connected<D::Stream>) -> Self {
        let negotiated = Negotiated::new(first);
        let policy = connector.config.reconnect.as_ref();
        let policy = policy.filter(|_| connector.can_dial());
        let log = policy.map(|policy| SharedLog::new(policy, &negotiated.export));
        let config = &connector.config;
        let driver = connector.driver.clone();
        let clock = move || driver.now();
        let observer = config.observer.another(config.slow_request, clock);
        #[cfg(feature = "tracing")]
        let observer = {
            let export = &connector.config.negotiation.export;
            observer.traced(connector.server(), export, &negotiated)
        };
        Self {
            connector,
            negotiated,
            log,
            observer,
            spare: Arc::default(),
        }
    }

    /// Whether another connection leads to the same export.
    ///
    /// # Errors
    ///
    /// [`Lost::Changed`].
    pub fn compare(&self, other: &Connected<D::Stream>) -> Result<(), Error> {
        let other = Negotiated::new(other);
        match self.negotiated.differs(&other, self.policy()) {
            Some(what) => Err(Error::lost(Lost::Changed { what })),
            None => Ok(()),
        }
    }
}

impl<D> Common<D> {
    /// Whether and how connections that are lost are replaced.
    #[must_use]
    pub fn policy(&self) -> Option<&Reconnect> {
        let policy = self.connector.config.reconnect.as_ref();
        policy.filter(|_| self.reconnects())
    }

    /// Number of times that answered writes may have been lost before a flush covered them.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.lock().losses())
    }

    /// Whether connections that are lost are replaced.
    #[must_use]
    pub const fn reconnects(&self) -> bool {
        self.log.is_some()
    }

    /// Whether a connection counts as lost when its server has been silent for too long.
    #[must_use]
    pub fn loses_when_silent(&self) -> bool {
        let said = self.connector.config.lose_when_silent;
        said.unwrap_or_else(|| self.reconnects())
    }

    /// Number of connections that are wanted.
    #[must_use]
    pub fn connections(&self) -> usize {
        // C-189
        if self.connector.can_dial() && self.negotiated.export.can_multi_conn() {
            self.connector.config.connections
        } else {
            1
        }
    }
}
