//! The connections of a client.

use super::{
    link::{Keeper, Link, Stream},
    options::ConnectOptions,
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
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    async fn another(&self, uri: &Uri) -> Result<Arc<Link>, Error> {
        let connected = self.options.open(uri).await?;
        let facts = Facts::new(&connected.transmission, connected.encrypted);
        let link = self.link(connected);
        if let Some(what) = self.facts.differs(&facts) {
            self.tend(&link);
            link.close();
            return Err(Error::lost(Lost::Changed { what }));
        }
        Ok(link)
    }

    /// Starts the task behind a connection.
    fn tend(&self, link: &Arc<Link>) {
        let runtime = &self.options.runtime;
        let keeper = Keeper::new(link.clone(), runtime.clone());
        runtime.spawn(async move { drop(keeper.await) });
    }
}

/// The connections of a client. When it is dropped, they are closed.
pub(super) struct Pool<R> {
    pub(super) plan: Arc<Plan<R>>,
    links: Mutex<Vec<Arc<Link>>>,
}

impl<R: Network> Pool<R> {
    /// Makes the other connections that are wanted, if the server lets a client have several.
    pub(super) async fn open(plan: Plan<R>, first: Connected<Stream>) -> Result<Self, Error> {
        let pool = Self {
            links: Mutex::new(vec![plan.link(first)]),
            plan: Arc::new(plan),
        };
        let plan = &*pool.plan;
        plan.tend(&pool.links()[0]);
        // C-189
        if plan.facts.export.can_multi_conn()
            && let Some(uri) = &plan.uri
        {
            for _ in 1..plan.options.connections {
                // C-190
                let link = plan.another(uri).await?;
                plan.tend(&link);
                pool.links().push(link);
            }
        }
        Ok(pool)
    }
}

impl<R> Pool<R> {
    pub(super) fn links(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that has the least to do.
    pub(super) fn link(&self) -> Arc<Link> {
        let links = self.links();
        match &links[..] {
            [only] => only.clone(),
            several => {
                let load = |link: &&Arc<Link>| (link.lost().is_some(), link.load());
                let best = several.iter().min_by_key(load);
                best.expect("there is a first connection").clone()
            }
        }
    }
}

impl<R> Drop for Pool<R> {
    fn drop(&mut self) {
        for link in self.links().iter() {
            link.close();
        }
    }
}

impl<R> fmt::Debug for Pool<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("facts", &self.plan.facts)
            .field("links", &*self.links())
            .finish()
    }
}
