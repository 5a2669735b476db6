//! How the connections of a client are made.

use crate::{ConnectOptions, Error, Lost, link::Link, patience::Patience, stream::Negotiating};
use nbd_io::client::{Connected, Facts};
use nbd_proto::Uri;
use std::{sync::Arc, time::Instant};

/// How a client's connections are made, and what they have in common.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) options: ConnectOptions,
    pub(super) uri: Uri,
    pub(super) facts: Facts,
}

impl Plan {
    /// Makes another connection like the first.
    pub(super) async fn another(
        &self,
        deadline: Option<Instant>,
        patience: Patience,
    ) -> Result<Arc<Link>, Error> {
        let connected = self.options.open(&self.uri, deadline, patience).await?;
        let facts = Facts::new(&connected.transmission, connected.encrypted);
        // One that is of no use is told goodbye.
        let link = link(&self.options, connected)?;
        match self.facts.differs(&facts) {
            Some(what) => Err(Error::lost(Lost::Changed { what })),
            None => Ok(link),
        }
    }

    /// Whether a crash of the server may undo what was answered.
    pub(super) fn may_lose(&self) -> bool {
        let export = &self.facts.export;
        export.can_flush() && !export.is_read_only()
    }
}

pub(super) fn link(
    options: &ConnectOptions,
    connected: Connected<Negotiating>,
) -> Result<Arc<Link>, Error> {
    let Connected {
        transport,
        transmission,
        ..
    } = connected;
    let link = Link::new(
        transport.stream,
        transmission,
        options.request_timeout,
        options.reconnect.is_some(),
    )?;
    Ok(Arc::new(link))
}
