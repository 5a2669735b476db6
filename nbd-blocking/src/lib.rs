#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod client;
mod cursor;
mod extents;
mod haggling;
mod link;
mod options;
mod overlaps;
mod patience;
mod pool;
mod queue;
pub mod server;
mod socket;
mod stream;
#[cfg(feature = "tls-base")]
mod tls;

pub use client::Client;
pub use cursor::Cursor;
pub use extents::Extents;
pub use haggling::{ByName, Entered, Greeted, Haggling, RefusedStep};
pub use nbd_io::client::{
    Error, Lost, NegotiationError, Stretch, TlsPolicy,
    shared::{ConnectionState, Reconnect},
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
pub use options::ConnectOptions;
pub use queue::{Completion, Queue};
pub use stream::Negotiating;
pub use {nbd_io, nbd_proto};

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
