//! How the connections of a client are made.

use crate::{ConnectOptions, Error, Lost, link::Link, patience::Patience, stream::Negotiating};
use nbd_io::client::{Connected, Facts, LinkLog, SharedLog};
use nbd_proto::Uri;
use std::{sync::Arc, time::Instant};

/// How a client's connections are made, and what they have in common.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) options: ConnectOptions,
    pub(super) uri: Uri,
    pub(super) facts: Facts,
    /// What was changed and may not be on stable storage, if connections are made anew.
    pub(super) log: Option<SharedLog>,
}

impl Plan {
    pub(super) fn new(options: ConnectOptions, uri: Uri, facts: Facts) -> Self {
        let policy = options.reconnect.as_ref();
        let log = policy.map(|policy| SharedLog::new(policy, &facts.export));
        Self {
            options,
            uri,
            facts,
            log,
        }
    }

    /// Makes another connection like the first.
    pub(super) async fn another(
        &self,
        deadline: Option<Instant>,
        patience: Patience,
    ) -> Result<Arc<Link>, Error> {
        let connected = self.options.open(&self.uri, deadline, patience).await?;
        let facts = Facts::new(&connected.transmission, connected.encrypted);
        // One that is of no use is told goodbye.
        let link = link(&self.options, connected, self.log.clone())?;
        match self.facts.differs(&facts, self.options.reconnect.as_ref()) {
            Some(what) => Err(Error::lost(Lost::Changed { what })),
            None => Ok(link),
        }
    }
}

pub(super) fn link(
    options: &ConnectOptions,
    connected: Connected<Negotiating>,
    log: Option<SharedLog>,
) -> Result<Arc<Link>, Error> {
    let Connected {
        transport,
        transmission,
        ..
    } = connected;
    // Where there is a log, a connection is replaced when it is lost.
    let lose = options.lose_when_silent.unwrap_or_else(|| log.is_some());
    let link = Link::new(
        transport.stream,
        transmission,
        options.request_timeout,
        lose,
        log.map(LinkLog::new),
    )?;
    Ok(Arc::new(link))
}
