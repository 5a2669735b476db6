#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod cursor;
mod listener;
mod runtime;
mod socket;
mod stream;

pub use cursor::Cursor;
pub use listener::Listener;
#[cfg(feature = "tls-base")]
pub use nbd_io::tls::{ClientTls, ServerTls, TlsError};
pub use nbd_io::{
    client::{
        ClientEvent, ConnectionState, Error, Lost, NegotiationError, Reconnect, Stretch, TlsPolicy,
    },
    server::{Applicant, Ending, Event, Outcome, Peer, Stopper},
};
pub use nbd_proto::{
    BlockSizes, Command, CommandFlags, ContextName, Errno, ExportInfo, ExportName, Failure, Limits,
    Misuse, Mode, Uri,
    client::{
        Context, ContextExtents, Encrypted, Go, InfoSet, ListEntry, MetaContextEntry, Plain,
        Tolerance,
    },
    meta,
};
pub use runtime::{AsyncStd, Sleep};
pub use socket::Socket;
pub use stream::Stream;
pub use {nbd_io, nbd_proto, nbd_socket};

/// Serves exports to any number of clients, from a [`Listener`] or any transport.
pub type Server = nbd_io::server::Server<AsyncStd>;

/// Uses an export, from any number of tasks.
pub type Client = nbd_io::client::shared::Client<AsyncStd>;

/// The extents of a range, one after the other.
pub type Extents = nbd_io::client::shared::Extents<AsyncStd>;

/// What a server turned out to speak, to go on step by step.
pub type Greeted = nbd_io::client::Greeted<AsyncStd>;

/// A server that can only be asked for one export.
pub type Newstyle = nbd_io::client::Newstyle<AsyncStd>;

/// A server with a single export.
pub type Oldstyle = nbd_io::client::Oldstyle<AsyncStd>;

/// Negotiates with a server option by option.
///
/// ```no_run
/// use nbd_async_std::{ConnectOptions, Go, Uri};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let uri: Uri = "nbd://localhost".parse()?;
/// let greeted = ConnectOptions::new().start(&uri).await?;
/// let mut negotiation = greeted.negotiation().ok_or("the server is an old one")?;
/// for entry in negotiation.list().await? {
///     println!("{:?}: {}", entry.name, entry.description);
/// }
/// negotiation.abort().await;
/// # Ok(()) }
/// ```
pub type Negotiation<S> = nbd_io::client::Negotiation<AsyncStd, S>;

/// An option that the server has refused, and the negotiation, which goes on.
pub type RefusedStep<S> = nbd_io::client::RefusedStep<AsyncStd, S>;

/// How to reach an export, and what to ask for: by default everything that makes a connection better.
///
/// ```no_run
/// use nbd_async_std::{ConnectOptions, ContextName};
///
/// # async fn f() -> Result<(), nbd_async_std::Error> {
/// let client = ConnectOptions::new()
///     .context(ContextName::base_allocation())
///     .connect("nbd://localhost/disk")
///     .await?;
/// # Ok(()) }
/// ```
pub type ConnectOptions = nbd_io::client::ConnectOptions<AsyncStd>;

/// Connects to what a URI names and enters its export, with [default
/// options](ConnectOptions::new).
///
/// # Errors
///
/// When the URI is wrong, the server cannot be reached, or the export cannot be entered.
///
/// # Cancel safety
///
/// A future that is dropped leaves no connection behind.
pub async fn connect(uri: &str) -> Result<Client, Error> {
    ConnectOptions::new().connect(uri).await
}
