#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod client;
mod cursor;
mod dial_clock;
mod driver;
mod extents;
mod host;
mod link;
mod pool;
mod queue;
mod range_guard;
mod remote;
mod stream;
#[cfg(feature = "tls-base")]
mod tls;
#[cfg(all(test, feature = "tracing"))]
mod traced;

pub use client::Client;
pub use cursor::Cursor;
pub use driver::{Blocking, Stream};
pub use extents::Extents;
pub use host::{Listener, Stdio, Threads};
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
    client::{Context, ContextExtents, Cookie, Limits, Tolerance},
    meta,
};
pub use queue::{Completion, Queue};
#[doc(hidden)]
pub use stream::Negotiating;
pub use {bytes, nbd_io, nbd_proto, nbd_socket};

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

/// Serves exports to any number of clients.
///
/// Each connection has a thread of its own. It carries out requests itself where the export does
/// not wait, or has been quick of late; others are carried out by threads that all connections
/// share.
///
/// ```
/// use nbd_blocking::{ConnectOptions, Server, exports::Memory};
/// use std::{os::unix::net::UnixStream, sync::Arc, thread};
///
/// let server = Server::single(Arc::new(Memory::new(1 << 20)));
/// let (ours, theirs) = UnixStream::pair()?;
/// let serving = thread::spawn(move || server.serve_over(theirs));
///
/// let client = ConnectOptions::new().connect_over(ours, None)?;
/// client.write_at(b"hello", 4096)?;
/// client.disconnect()?;
/// serving.join().expect("the server does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Server = nbd_io::server::Server<Threads>;

/// Connects to what a URI names and enters its export, with [default
/// options](ConnectOptions::new).
///
/// # Errors
///
/// When the URI is wrong, the server cannot be reached, or the export cannot be entered.
pub fn connect(uri: &str) -> Result<Client, Error> {
    ConnectOptions::new().connect(uri)
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
    //! use nbd_blocking::{Server, exports::{Export, Failure}};
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

    pub use crate::remote::Remote;
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

    use crate::Blocking;
    #[doc(inline)]
    pub use nbd_io::client::{NegotiationError, StepOutcome};
    #[doc(inline)]
    pub use nbd_proto::client::{Encrypted, Go, InfoSet, ListEntry, MetaContextEntry, Plain};

    /// What a server turned out to speak, to go on step by step.
    pub type Greeted = nbd_io::client::Greeted<Blocking>;

    /// A server that can only be asked for one export.
    pub type Newstyle = nbd_io::client::Newstyle<Blocking>;

    /// A server with a single export.
    pub type Oldstyle = nbd_io::client::Oldstyle<Blocking>;

    /// An option that the server has refused, and the negotiation, which goes on.
    pub type RefusedStep<S> = nbd_io::client::RefusedStep<Blocking, S>;

    /// Negotiates with a server option by option.
    ///
    /// ```no_run
    /// use nbd_blocking::{ConnectOptions, Uri};
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
}
