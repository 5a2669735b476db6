//! The connections of a client.

mod dial;
mod plan;
mod restored;

pub(crate) use restored::Restored;

use crate::{
    ConnectOptions, Error, Lost,
    link::{Link, farewell},
    overlaps::Overlaps,
    patience::Patience,
    stream::Negotiating,
};
use nbd_io::{
    client::{Connected, ConnectionState, Facts},
    transport::block_on_ready,
};
use nbd_proto::Uri;
use plan::{Plan, link};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The connections of a client. When it is dropped, goodbye is said on all of them.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) facts: Facts,
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
    /// A single connection.
    pub(crate) fn alone(
        options: &ConnectOptions,
        connected: Connected<Negotiating>,
    ) -> Result<Self, Error> {
        let facts = Facts::new(&connected.transmission, connected.encrypted);
        let link = link(options, connected, None)?;
        Ok(Self::new(options, facts, Links::One(link)))
    }

    /// Makes the other connections that are wanted, if the server lets a client have several.
    pub(crate) fn open(
        options: ConnectOptions,
        uri: Uri,
        first: Connected<Negotiating>,
    ) -> Result<Self, Error> {
        let facts = Facts::new(&first.transmission, first.encrypted);
        let plan = Plan::new(options, uri, facts);
        let mut links = vec![link(&plan.options, first, plan.log.clone())?];
        // C-189
        if plan.facts.export.can_multi_conn() {
            for _ in 1..plan.options.connections {
                // C-190
                links.push(block_on_ready(plan.another(None, Patience::endless()))?);
            }
        }
        let (options, facts) = (plan.options.clone(), plan.facts.clone());
        let restored = options.reconnect.clone().zip(plan.log.clone());
        let links = match (restored, &links[..]) {
            (Some((policy, log)), _) => {
                Links::Restored(Box::new(Restored::new(plan, policy, log, links)))
            }
            (None, [only]) => Links::One(only.clone()),
            (None, _) => Links::Several(links),
        };
        Ok(Self::new(&options, facts, links))
    }

    fn new(options: &ConnectOptions, facts: Facts, links: Links) -> Self {
        Self {
            facts,
            overlaps: Arc::default(),
            timeout: options.request_timeout,
            links,
        }
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
