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
        Error, Lost, NegotiationError, Stretch, TlsPolicy,
        shared::{ConnectionState, Reconnect},
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
pub use nbd_socket::Launch;
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
pub type Greeted = nbd_io::client::shared::Greeted<AsyncStd>;

/// A server that can only be asked for one export.
pub type ByName = nbd_io::client::shared::ByName<AsyncStd>;

/// A server with a single export.
pub type Entered = nbd_io::client::shared::Entered<AsyncStd>;

/// Negotiates with a server option by option.
pub type Haggling<S> = nbd_io::client::shared::Haggling<AsyncStd, S>;

/// An option that the server has refused, and the negotiation, which goes on.
pub type RefusedStep<S> = nbd_io::client::shared::RefusedStep<AsyncStd, S>;

/// How to reach an export, and what to ask for.
pub type ConnectOptions = nbd_io::client::shared::ConnectOptions<AsyncStd>;

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
