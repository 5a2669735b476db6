#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod cursor;
mod listener;
mod runtime;
mod socket;
mod stream;

pub use cursor::Cursor;
pub use listener::Listener;
#[doc(inline)]
pub use nbd_io::client::tasks::ReadIntoError;
#[doc(inline)]
pub use nbd_io::client::{
    ClientEvent, ConnectionState, Error, Lost, Reconnect, StatusRun, TlsPolicy,
};
#[cfg(feature = "tls-base")]
#[doc(inline)]
pub use nbd_io::tls::{ClientTls, PeerNames, ServerTls, TlsError};
#[doc(inline)]
pub use nbd_io::transport::TlsSession;
#[doc(inline)]
pub use nbd_proto::{
    BlockSizes, Command, CommandFlags, ContextName, Errno, ExportInfo, ExportName, HeaderStyle,
    Misuse, Uri,
    client::{Context, ContextExtents, Limits, Tolerance},
    meta,
};
pub use runtime::Tokio;
pub use socket::Socket;
pub use stream::Stream;
pub use {bytes, nbd_io, nbd_proto, nbd_socket};

/// Serves exports to any number of clients, from a [`Listener`] or any transport.
pub type Server = nbd_io::server::Server<Tokio>;

/// Uses an export, from any number of tasks.
///
/// ```no_run
/// use nbd_tokio::{CommandFlags, ConnectOptions, ContextName, bytes::BytesMut};
///
/// # async fn f() -> Result<(), nbd_tokio::Error> {
/// let options = ConnectOptions::new().context(ContextName::base_allocation());
/// let disk = options.connect("nbd://localhost/disk").await?;
///
/// // What was agreed on.
/// println!("{} bytes, {:?}, {:?}", disk.size(), disk.block_sizes(), disk.mode());
/// println!("read only: {}, TLS: {}", disk.export().is_read_only(), disk.is_encrypted());
/// println!("{:?} over {} connections", disk.contexts(), disk.connections());
///
/// // Reading: into a new buffer, into one that is used again, and in one piece.
/// let data = disk.read(0, 4096).await?;
/// let buffer = disk.read_into(BytesMut::zeroed(4096), 4096).await?;
/// let whole = disk.read_with(0, 4096, CommandFlags::DF).await?;
///
/// // Changing.
/// disk.write(data, 8192).await?;
/// disk.write_with(buffer.freeze(), 4096, CommandFlags::FUA).await?;
/// disk.write_zeroes(16384, 4096, CommandFlags::NO_HOLE).await?;
/// disk.trim(0, 4096, CommandFlags::NONE).await?;
/// disk.cache(0, 1 << 20).await?;
/// disk.flush().await?;
///
/// // Which ranges have data: all of them, and what one request tells.
/// let mut extents = disk.extents(0..disk.size());
/// while let Some(run) = extents.next().await {
///     println!("{:?}", run?);
/// }
/// let ids: Vec<u32> = disk.contexts().iter().map(|context| context.id).collect();
/// let first = disk.block_status(0, 1 << 20, CommandFlags::REQ_ONE).await?;
/// let some = disk.block_status_of(&ids, 0, 1 << 20, CommandFlags::NONE).await?;
///
/// // The connection: its state, the next one, a new one at once, and its end.
/// if !disk.is_lost() {
///     let state = disk.state();
///     disk.reconnect_now()?;
///     println!("{:?}", disk.state_changed(&state).await);
/// }
/// disk.disconnect().await
/// # }
/// ```
pub type Client = nbd_io::client::tasks::Client<Tokio>;

/// The extents of a range, one after the other.
pub type Extents = nbd_io::client::tasks::Extents<Tokio>;

/// How to reach an export, and what to ask for: by default everything that makes a connection better.
///
/// ```no_run
/// use nbd_tokio::{ConnectOptions, ContextName};
///
/// # async fn f() -> Result<(), nbd_tokio::Error> {
/// let client = ConnectOptions::new()
///     .context(ContextName::base_allocation())
///     .connect("nbd://localhost/disk")
///     .await?;
/// # Ok(()) }
/// ```
pub type ConnectOptions = nbd_io::client::ConnectOptions<Tokio>;

/// Connects to what a URI names and enters its export, with [default
/// options](ConnectOptions::new).
///
/// # Errors
///
/// When the URI is wrong, the server cannot be reached, or the export cannot be entered.
///
/// # Panics
///
/// Outside a Tokio runtime, or if its I/O or its time is not enabled.
///
/// # Cancel safety
///
/// A future that is dropped leaves no connection behind.
pub async fn connect(uri: &str) -> Result<Client, Error> {
    ConnectOptions::new().connect(uri).await
}

pub mod server {
    //! What a server tells the program that it is part of, and how it is stopped.

    #[doc(inline)]
    pub use nbd_io::server::{ClientIdentity, CloseReason, Event, Outcome, Peer, Rate, Stopper};
    #[doc(inline)]
    pub use nbd_proto::server::Limits;
}

pub mod exports {
    //! What a server serves: disks in files and in memory, wrappers around other exports, and the
    //! traits [`Export`] and [`Exports`] for whatever else a program has.
    //!
    //! ```
    //! use nbd_tokio::{Server, exports::{Export, Failure}};
    //! use std::sync::Arc;
    //!
    //! /// A disk of which every byte is 42.
    //! struct Answer;
    //!
    //! impl Export for Answer {
    //!     fn size(&self) -> u64 {
    //!         1 << 20
    //!     }
    //!
    //!     fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
    //!         buf.fill(42);
    //!         Ok(())
    //!     }
    //! }
    //!
    //! let server = Server::single(Arc::new(Answer));
    //! ```

    #[doc(inline)]
    pub use nbd_io::{
        Content, Directory, Export, Exports, ExportsByName, Fault, Faults, Faulty, File, Listing,
        Memory, MetaContext, NamedExports, Offer, Overlay, OverlayError, ReadOnly, Slice,
        SliceError, Unavailable, ZeroMode, export_info, failure, fast_zero_failure, forward_export,
        reportable,
    };
    #[doc(inline)]
    pub use nbd_proto::{
        BlockSizes, Errno, ExportInfo, ExportName, Failure, TransmissionFlags, meta,
    };
}

pub mod negotiation {
    //! Negotiation option by option, for programs that look around before they enter an export. It
    //! begins with [`ConnectOptions::start`](crate::ConnectOptions::start) or
    //! [`start_secure`](crate::ConnectOptions::start_secure).

    use crate::Tokio;
    #[doc(inline)]
    pub use nbd_io::client::{NegotiationError, StepOutcome};
    #[doc(inline)]
    pub use nbd_proto::client::{Encrypted, Go, InfoSet, ListEntry, MetaContextEntry, Plain};

    /// What a server turned out to speak, to go on step by step.
    pub type Greeted = nbd_io::client::Greeted<Tokio>;

    /// A server that can only be asked for one export.
    pub type Newstyle = nbd_io::client::Newstyle<Tokio>;

    /// A server with a single export.
    pub type Oldstyle = nbd_io::client::Oldstyle<Tokio>;

    /// An option that the server has refused, and the negotiation, which goes on.
    pub type RefusedStep<S> = nbd_io::client::RefusedStep<Tokio, S>;

    /// Negotiates with a server option by option.
    ///
    /// ```no_run
    /// use nbd_tokio::{ConnectOptions, Uri};
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
    pub type Negotiation<S> = nbd_io::client::Negotiation<Tokio, S>;
}
