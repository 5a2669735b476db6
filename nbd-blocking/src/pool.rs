//! The connections of a client.

use crate::{
    ConnectOptions, Error, Lost,
    link::{Link, farewell},
    overlaps::Overlaps,
    stream::Negotiating,
};
use nbd_io::client::{Connected, Facts};
use nbd_proto::Uri;
use std::{sync::Arc, time::Duration};

/// The connections of a client. When it is dropped, goodbye is said on all of them.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) facts: Facts,
    /// Changes of the same bytes, where they have to be kept apart.
    pub(crate) overlaps: Overlaps,
    /// How long a request may take.
    pub(crate) timeout: Option<Duration>,
    links: Links,
}

#[derive(Debug)]
enum Links {
    One(Arc<Link>),
    Several(Vec<Arc<Link>>),
}

impl Pool {
    /// A single connection.
    pub(crate) fn alone(
        options: &ConnectOptions,
        connected: Connected<Negotiating>,
    ) -> Result<Self, Error> {
        let facts = Facts::new(&connected.transmission, connected.encrypted);
        let link = link(options, connected)?;
        Ok(Self::new(options, facts, Links::One(link)))
    }

    /// Makes the other connections that are wanted, if the server lets a client have several.
    pub(crate) fn open(
        options: ConnectOptions,
        uri: Uri,
        first: Connected<Negotiating>,
    ) -> Result<Self, Error> {
        let plan = Plan {
            facts: Facts::new(&first.transmission, first.encrypted),
            options,
            uri,
        };
        let mut links = vec![link(&plan.options, first)?];
        // C-189
        if plan.facts.export.can_multi_conn() {
            for _ in 1..plan.options.connections {
                // C-190
                links.push(plan.another()?);
            }
        }
        let links = match links.pop() {
            Some(only) if links.is_empty() => Links::One(only),
            last => {
                links.extend(last);
                Links::Several(links)
            }
        };
        Ok(Self::new(&plan.options, plan.facts, links))
    }

    fn new(options: &ConnectOptions, facts: Facts, links: Links) -> Self {
        Self {
            facts,
            overlaps: Overlaps::default(),
            timeout: options.request_timeout,
            links,
        }
    }

    fn links(&self) -> &[Arc<Link>] {
        match &self.links {
            Links::One(only) => std::slice::from_ref(only),
            Links::Several(links) => links,
        }
    }

    /// The connection that has the least to do. If all are over, one of those, which knows how.
    pub(crate) fn link(&self) -> &Arc<Link> {
        match &self.links {
            Links::One(only) => only,
            Links::Several(links) => {
                let load = |link: &&Arc<Link>| link.load().unwrap_or(usize::MAX);
                links.iter().min_by_key(load).unwrap_or(&links[0])
            }
        }
    }

    /// How many connections there are.
    pub(crate) fn count(&self) -> usize {
        let open = |link: &&Arc<Link>| link.lost().is_none();
        self.links().iter().filter(open).count()
    }

    /// Ends the session on all connections.
    pub(crate) fn disconnect(&self) -> Result<(), Error> {
        let deadline = farewell();
        let mut result = Ok(());
        for link in self.links() {
            let ended = link.disconnect(deadline);
            result = result.and(ended);
        }
        result
    }
}

/// How a client's connections are made, and what they have in common.
#[derive(Debug)]
struct Plan {
    options: ConnectOptions,
    uri: Uri,
    facts: Facts,
}

impl Plan {
    /// Makes another connection like the first.
    fn another(&self) -> Result<Arc<Link>, Error> {
        let connected = self.options.open(&self.uri)?;
        let facts = Facts::new(&connected.transmission, connected.encrypted);
        // One that is of no use is told goodbye.
        let link = link(&self.options, connected)?;
        match self.facts.differs(&facts) {
            Some(what) => Err(Error::lost(Lost::Changed { what })),
            None => Ok(link),
        }
    }
}

fn link(options: &ConnectOptions, connected: Connected<Negotiating>) -> Result<Arc<Link>, Error> {
    let Connected {
        transport,
        transmission,
        ..
    } = connected;
    let link = Link::new(transport.stream, transmission, options.request_timeout)?;
    Ok(Arc::new(link))
}
