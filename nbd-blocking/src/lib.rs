#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod client;
mod cursor;
mod driver;
mod extents;
mod link;
mod overlaps;
mod patience;
mod pool;
mod queue;
mod remote;
pub mod server;
mod stream;
#[cfg(feature = "tls-base")]
mod tls;
#[cfg(all(test, feature = "tracing"))]
mod traced;

pub use client::Client;
pub use cursor::Cursor;
pub use driver::{Blocking, Stream};
pub use extents::Extents;
pub use nbd_io::client::{
    ClientEvent, ConnectionState, Error, Lost, NegotiationError, Reconnect, Stretch, TlsPolicy,
};
#[cfg(feature = "tls-base")]
pub use nbd_io::tls::{ClientTls, ServerTls, TlsError};
pub use nbd_proto::{
    BlockSizes, Command, CommandFlags, ContextName, Errno, ExportInfo, ExportName, Failure, Limits,
    Misuse, Mode, Uri,
    client::{
        Context, ContextExtents, Cookie, Encrypted, Go, InfoSet, ListEntry, MetaContextEntry,
        Plain, Tolerance,
    },
    meta,
};
pub use queue::{Completion, Queue};
pub use remote::Remote;
pub use stream::Negotiating;
pub use {nbd_io, nbd_proto};

/// How to reach an export, and what to ask for: by default everything that makes a connection better.
///
/// ```no_run
/// use nbd_blocking::{ConnectOptions, ContextName};
///
/// let client = ConnectOptions::new()
///     .context(ContextName::base_allocation())
///     .connect("nbd://localhost/disk")?;
/// # Ok::<(), nbd_blocking::Error>(())
/// ```
///
/// # Without a thread
///
/// There is no thread behind a client. With
/// [`reconnect`](nbd_io::client::ConnectOptions::reconnect), a loss is noticed by the next call,
/// whichever connection that uses, and calls make the new connection: attempts go on only while there
/// are calls, and the first that comes late is made all the same. A call that has no connection to use
/// waits for one as long as a request may take. One that has dials for the sake of others, for 1 ms at
/// most, and all of them together for no more than a tenth of the time. A [`Queue`] ends with its
/// connection.
pub type ConnectOptions = nbd_io::client::ConnectOptions<Blocking>;

/// What a server turned out to speak, to go on step by step.
pub type Greeted = nbd_io::client::Greeted<Blocking>;

/// A server that can only be asked for one export.
pub type Newstyle = nbd_io::client::Newstyle<Blocking>;

/// A server with a single export.
pub type Oldstyle = nbd_io::client::Oldstyle<Blocking>;

/// Negotiates with a server option by option.
///
/// ```no_run
/// use nbd_blocking::{ConnectOptions, Go, Uri};
///
/// let uri: Uri = "nbd://localhost".parse()?;
/// let greeted = ConnectOptions::new().start(&uri)?;
/// let mut negotiation = greeted.negotiation().ok_or("the server is an old one")?;
/// for entry in negotiation.list()? {
///     println!("{:?}: {}", entry.name, entry.description);
/// }
/// negotiation.abort();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Negotiation<S> = nbd_io::client::Negotiation<Blocking, S>;

/// An option that the server has refused, and the negotiation, which goes on.
pub type RefusedStep<S> = nbd_io::client::RefusedStep<Blocking, S>;

/// Connects to what a URI names and enters its export, with [default
/// options](ConnectOptions::new).
///
/// # Errors
///
/// When the URI is wrong, the server cannot be reached, or the export cannot be entered.
pub fn connect(uri: &str) -> Result<Client, Error> {
    ConnectOptions::new().connect(uri)
}

/// The examples of the project's front page.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct FrontPage;
