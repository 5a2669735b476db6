//! The client on Tokio, called from plain threads that wait.

use crate::waiting;
use nbd_tokio::Tokio;
use std::sync::LazyLock;
use tokio::runtime::Runtime;

pub(crate) use nbd_io::{
    client::{Error, StatusRun, TlsPolicy},
    tls::ClientTls,
};
pub(crate) use nbd_proto::{
    CommandFlags, ContextName, Errno, ExportName, HeaderStyle, Misuse, Uri,
    client::{Go, ListEntry, MetaContextEntry, Plain, Tolerance},
    meta,
};

/// The name of the client in docs/interoperability.md.
pub(crate) const NAME: &str = "nbd-tokio";

/// Whether dropping the client waits for the child process that it has started. Threads of a
/// runtime must not wait.
pub(crate) const WAITS_FOR_CHILDREN: bool = false;

/// Has threads of its own, on which tasks go on while no caller waits.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("threads can be started"));

/// [`RUNTIME`], which the client finds itself where it needs one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Threads;

impl waiting::Driver for Threads {
    type Network = Tokio;

    fn network(&self) -> Tokio {
        Tokio::default()
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        RUNTIME.block_on(future)
    }
}

pub(crate) type Client = waiting::Client<Threads>;
pub(crate) type ConnectOptions = waiting::ConnectOptions<Threads>;
pub(crate) type Greeted = waiting::Greeted<Threads>;
pub(crate) type Negotiation<S> = waiting::Negotiation<Threads, S>;
