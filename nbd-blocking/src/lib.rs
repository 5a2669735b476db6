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
mod into_connection;
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
pub use driver::Blocking;
pub use extents::Extents;
pub use host::{Listener, Stdio, Threads};
pub use into_connection::{IntoConnection, Stream};
#[doc(inline)]
pub use nbd_io::nbd_proto::client::Cookie;
pub use queue::{Completion, Queue};
#[doc(hidden)]
pub use stream::Negotiating;
pub use {bytes, nbd_io, nbd_proto, nbd_socket};

nbd_io::driver_root! {
    /// Address of an export, and features to ask for: by default all that make a connection better.
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
    /// [`reconnect`](Self::reconnect), a loss is noticed by the next call,
    /// whichever connection that uses, and calls make the new connection: attempts go on only while there
    /// are calls, and the first that comes late is made all the same. A call without a usable
    /// connection waits for one as long as a request may take. A call that has one gives at most
    /// 1 ms to the connections that are missing, and all such calls together no more than a tenth of
    /// the time. A [`Queue`] ends with its connection.
    ConnectOptions: Blocking,
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
    Server: Threads,
    connect: [] nbd_io::transport::block_on_ready, [],
    serve: host::wait,
    exports: { pub use crate::remote::Remote; },
    examples: "nbd_blocking", "# use {nbd_blocking::{*, bytes, exports::*, nbd_proto}, std::{sync::Arc, time::Duration}}; fn example(options: ConnectOptions, disk: Client, server: Server, runtime: Threads) -> Result<(), Box<dyn std::error::Error>> {", "", "# Ok(()) }",
}

nbd_io::driver_accessors! {
    examples: "# use {nbd_blocking::{*, bytes, exports::*, nbd_proto}, std::{sync::Arc, time::Duration}}; fn example(options: ConnectOptions, disk: Client, server: Server, runtime: Threads) -> Result<(), Box<dyn std::error::Error>> {", "", "# Ok(()) }",
}
