//! The client for plain threads.

pub(crate) use nbd_blocking::{
    Client, ClientTls, CommandFlags, ConnectOptions, ContextName, Errno, Error, ExportName,
    HeaderStyle, Misuse, StatusRun, TlsPolicy, Tolerance, Uri, meta,
    negotiation::{Go, Greeted, ListEntry, MetaContextEntry, Negotiation, Plain},
};

/// The name of the client in docs/interoperability.md.
pub(crate) const NAME: &str = "nbd-blocking";

/// Whether dropping the client waits for the child process that it has started.
pub(crate) const WAITS_FOR_CHILDREN: bool = true;
