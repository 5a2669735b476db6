//! `nbd list`: the exports of a server.

use crate::{
    connect::{Connect, Opened},
    outcome::{Answer, Error, Result},
    output,
    report::{self, Export},
    runtime,
    session::Session,
    size::Size,
    target::Target,
    text::printable,
};
use clap::Args;
use futures_util::future::{join, join_all};
use nbd_tokio::{ConnectOptions, TlsPolicy, Uri, negotiation::ListEntry};
use std::{
    cell::{Cell, RefCell},
    fmt::Write,
};

/// Number of connections that ask about exports at once, where there are many.
const CONNECTIONS: usize = 8;

/// Least number of exports for one connection to ask about. Each takes two round trips, and a
/// connection three before the first.
const SHARE: usize = 4;

/// List the exports of a server, with a description of each.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nbd list nbd://localhost
  nbd list --json nbd+unix:///?socket=/tmp/nbd.sock
  nbd list --names nbd://localhost | head")]
pub(crate) struct List {
    /// The URI of a server. Its export is not looked at.
    target: Option<Target>,
    /// Print a JSON document, with the keys that nbdinfo has for the same.
    #[arg(long, conflicts_with = "names")]
    json: bool,
    /// Print names alone, one a line, and ask nothing about exports.
    #[arg(long)]
    names: bool,
    #[command(flatten)]
    connect: Connect,
}

impl List {
    pub(crate) fn run(self) -> Result {
        let Opened { uri, embedded } = Connect::open(self.target.as_ref())?;
        let server = runtime::block_on(look(&self, &uri))?;
        drop(embedded);
        if self.json {
            output::json(&server)?;
        } else {
            output::print(&self.text(&server))?;
        }
        Ok(Answer::Yes)
    }

    fn text(&self, server: &report::Server) -> String {
        let mut text = String::new();
        for export in &server.exports {
            let name = printable(&export.name);
            // A string takes everything.
            let _ = if self.names {
                writeln!(text, "{name}")
            } else if let Some(error) = &export.error {
                writeln!(text, "\"{name}\": {}", printable(error))
            } else {
                write!(text, "\"{name}\": {}", Size(export.size)).and_then(|()| {
                    if let Some(len) = export.unreachable {
                        write!(text, " (the last {len} bytes cannot be reached)")?;
                    }
                    if export.is_read_only {
                        text.push_str(", read-only");
                    }
                    if let Some(words) = export
                        .description
                        .as_ref()
                        .filter(|words| !words.is_empty())
                    {
                        write!(text, ", {}", printable(words))?;
                    }
                    for context in &export.contexts {
                        write!(text, ", {}", printable(context))?;
                    }
                    writeln!(text)
                })
            };
        }
        text
    }
}

/// Lists the exports and asks about each.
async fn look(list: &List, uri: &Uri) -> Result<report::Server> {
    let options = list.connect.options()?;
    let policy = list.connect.policy();
    let mut session = Session::agreed(&options, policy, uri).await?;
    let mut server = report::Server::new(
        session.protocol(),
        session.is_encrypted(),
        session.header_style(),
    );
    let Some(entries) = session.list().await? else {
        return Err(Error::new(format!(
            "the server of {} speaks {}, in which exports cannot be listed",
            uri.redacted(),
            session.protocol()
        )));
    };
    let work = Work::new(uri, entries);
    if list.names {
        session.abort().await;
        server.exports = work.names();
        return Ok(server);
    }
    let more = (work.entries.len() / SHARE).min(CONNECTIONS - 1);
    let first = work.ask(&options, policy, Some(session));
    let others = (0..more).map(|_| work.ask(&options, policy, None));
    let (first, _) = join(first, join_all(others)).await;
    // The others only make it quicker, and the server need not take them.
    first?;
    server.exports = work.done();
    Ok(server)
}

/// Exports to ask about, which several connections share.
struct Work<'a> {
    server: &'a Uri,
    entries: Vec<ListEntry>,
    next: Cell<usize>,
    done: RefCell<Vec<Option<Export>>>,
}

impl<'a> Work<'a> {
    fn new(server: &'a Uri, entries: Vec<ListEntry>) -> Self {
        let done = entries.iter().map(|_| None).collect();
        Self {
            server,
            entries,
            next: Cell::new(0),
            done: RefCell::new(done),
        }
    }

    /// The URI of an export, or a description of one whose name cannot be used.
    fn uri(&self, entry: &ListEntry) -> Result<Uri, Box<Export>> {
        match &entry.name {
            Ok(name) => Ok(self.server.clone().with_export(name.clone())),
            Err(error) => Err(Box::new(Export::unknown(self.server, error.to_string()))),
        }
    }

    /// Asks about one export after the other until none is left.
    async fn ask(
        &self,
        options: &ConnectOptions,
        policy: TlsPolicy,
        mut session: Option<Session>,
    ) -> Result<()> {
        loop {
            let at = self.next.get();
            let Some(entry) = self.entries.get(at) else {
                break;
            };
            self.next.set(at + 1);
            let export = match self.uri(entry) {
                Ok(uri) => self.describe(options, policy, &uri, &mut session).await?,
                Err(unknown) => *unknown,
            };
            if let Some(place) = self.done.borrow_mut().get_mut(at) {
                *place = Some(Export {
                    description: Some(entry.description.as_str().to_owned()),
                    ..export
                });
            }
        }
        if let Some(session) = session {
            session.abort().await;
        }
        Ok(())
    }

    /// Asks about one export. A server may answer only so many questions on one connection, and then
    /// is asked on another one.
    async fn describe(
        &self,
        options: &ConnectOptions,
        policy: TlsPolicy,
        uri: &Uri,
        session: &mut Option<Session>,
    ) -> Result<Export> {
        if let Some(mut used) = session.take()
            && let Ok(export) = used.describe(uri).await
        {
            *session = Some(used);
            return Ok(export);
        }
        let mut fresh = Session::agreed(options, policy, uri).await?;
        match fresh.describe(uri).await {
            Ok(export) => {
                *session = Some(fresh);
                Ok(export)
            }
            Err(Error::Client(error))
                if error
                    .refusal()
                    .is_some_and(|refusal| refusal.is_unsupported()) =>
            {
                // This server only describes an export that is entered.
                let client = fresh.enter(uri.export()).await?;
                let export = Export::new(uri, client.export(), &[]);
                client.disconnect().await?;
                Ok(export)
            }
            Err(Error::Client(error)) if error.refusal().is_some() => {
                *session = Some(fresh);
                Ok(Export::unknown(uri, error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// The exports by name alone.
    fn names(&self) -> Vec<Export> {
        let mut names = Vec::new();
        for entry in &self.entries {
            match self.uri(entry) {
                Ok(uri) => names.push(Export::unknown(&uri, String::new())),
                Err(unknown) => names.push(*unknown),
            }
        }
        names
    }

    fn done(self) -> Vec<Export> {
        self.done.into_inner().into_iter().flatten().collect()
    }
}

impl Session {
    /// The server's description of an export that is not entered.
    async fn describe(&mut self, uri: &Uri) -> Result<Export> {
        let info = self.info(uri.export()).await?;
        let contexts = self.contexts(uri.export()).await?;
        Ok(Export::new(uri, &info, &contexts))
    }
}
