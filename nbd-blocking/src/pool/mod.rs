//! The connections of a client.

mod dial;
mod restored;

pub(crate) use restored::Restored;

use crate::{
    Blocking, Error, Lost,
    link::{Link, farewell},
    overlaps::Overlaps,
    stream::Negotiating,
};
use nbd_io::client::{Common, Connected, ConnectionState, LinkLog, Negotiated};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The connections of a client. When it is dropped, goodbye is said on all of them.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) negotiated: Negotiated,
    /// Changes of the same bytes, where they have to be kept apart.
    pub(crate) overlaps: Arc<Overlaps>,
    /// How long a request may take.
    pub(crate) timeout: Option<Duration>,
    links: Links,
}

#[derive(Debug)]
enum Links {
    One(Arc<Link>),
    Several(Vec<Arc<Link>>),
    /// Those that are lost are made anew.
    Restored(Box<Restored>),
}

impl Pool {
    /// Makes the other connections that are wanted, if the server lets a client have several.
    pub(crate) fn open(
        common: Common<Blocking>,
        first: Connected<Negotiating>,
    ) -> impl Future<Output = Result<Self, Error>> + Send {
        // The future is small without it.
        let first = link(&common, first);
        async { Self::with_others(common, first?).await }
    }

    async fn with_others(common: Common<Blocking>, first: Arc<Link>) -> Result<Self, Error> {
        let negotiated = common.negotiated.clone();
        let timeout = common.connector.config.request_timeout;
        let mut links = vec![first];
        for _ in 1..common.connections() {
            // C-190
            let driver = &common.connector.driver;
            links.push(Box::pin(another(&common, driver, None)).await?);
        }
        let links = match common.log.clone() {
            Some(log) => Links::Restored(Box::new(Restored::new(common, log, links))),
            None if links.len() == 1 => Links::One(links[0].clone()),
            None => Links::Several(links),
        };
        Ok(Self {
            negotiated,
            overlaps: Arc::default(),
            timeout,
            links,
        })
    }

    /// The connection that has the least to do; if all are over, one of those, which knows how.
    /// Where they are made anew, who does that.
    pub(crate) fn link(&self) -> Result<&Arc<Link>, &Restored> {
        match &self.links {
            Links::One(only) => Ok(only),
            Links::Several(links) => {
                let load = |link: &&Arc<Link>| link.load().unwrap_or(usize::MAX);
                Ok(links.iter().min_by_key(load).unwrap_or(&links[0]))
            }
            Links::Restored(restored) => Err(restored),
        }
    }

    /// Who makes connections anew, if somebody does.
    pub(crate) const fn restored(&self) -> Option<&Restored> {
        match &self.links {
            Links::One(_) | Links::Several(_) => None,
            Links::Restored(restored) => Some(restored),
        }
    }

    fn fixed(&self) -> &[Arc<Link>] {
        match &self.links {
            Links::One(only) => std::slice::from_ref(only),
            Links::Several(links) => links,
            Links::Restored(_) => &[],
        }
    }

    /// Has all connections made anew.
    pub(crate) fn redial(&self) -> Result<(), Error> {
        match &self.links {
            Links::One(_) | Links::Several(_) => Err(Error::Unsupported {
                what: "this client makes no new connections: see `ConnectOptions::reconnect`",
            }),
            Links::Restored(restored) => restored.redial(),
        }
    }

    /// How many connections there are.
    pub(crate) fn count(&self) -> usize {
        if let Links::Restored(restored) = &self.links {
            return restored.count();
        }
        self.fixed()
            .iter()
            .filter(|link| ended(link).is_none())
            .count()
    }

    pub(crate) fn status(&self) -> ConnectionState {
        if let Links::Restored(restored) = &self.links {
            return restored.status();
        }
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
        let deadline = farewell();
        if let Links::Restored(restored) = &self.links {
            return restored.disconnect(deadline);
        }
        disconnect(self.fixed(), deadline)
    }
}

/// How a connection ended, if it has, whether anybody has noticed or not.
fn ended(link: &Link) -> Option<Arc<Lost>> {
    link.look();
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
    // One that is of no use is told goodbye.
    let link = link(common, connected)?;
    compared.map(|()| link)
}

fn link(common: &Common<Blocking>, connected: Connected<Negotiating>) -> Result<Arc<Link>, Error> {
    let link = Link::new(
        connected.transport.stream,
        connected.transmission,
        common.connector.config.request_timeout,
        common.loses_when_silent(),
        common.log.clone().map(LinkLog::new),
    )?;
    Ok(Arc::new(link))
}
