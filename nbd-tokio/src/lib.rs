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
pub use runtime::Tokio;
pub use socket::Socket;
pub use stream::Stream;
pub use {bytes, nbd_io, nbd_proto, nbd_socket};

nbd_io::driver_root! {
    /// Address of an export, and features to ask for: by default all that make a connection better.
    ///
    /// ```no_run
    /// use nbd_tokio::{ConnectOptions, ContextName};
    ///
    /// # async fn f() -> Result<(), nbd_tokio::Error> {
    /// let disk = ConnectOptions::new()
    ///     .context(ContextName::base_allocation())
    ///     .connect("nbd://localhost/disk")
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// A future that is dropped leaves no connection behind.
    ConnectOptions: Tokio,
    /// Serves exports to any number of clients, from a [`Listener`] or any transport.
    ///
    /// ```no_run
    /// use nbd_tokio::{Listener, Server, exports::Memory};
    /// use std::sync::Arc;
    ///
    /// # async fn f() -> std::io::Result<()> {
    /// let server = Server::single(Arc::new(Memory::new(1 << 30)));
    /// server.serve(Listener::bind_tcp("localhost:10809")?).await
    /// # }
    /// ```
    Server: Tokio,
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, or if its I/O or its time is not enabled.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves no connection behind.
    connect: [async] Box::pin, [.await],
    serve: Box::pin,
    exports: { pub use nbd_io::client::Remote; },
    examples: "nbd_tokio", "# use {nbd_tokio::{*, bytes, exports::*, nbd_proto}, std::{sync::Arc, time::Duration}}; async fn example(options: ConnectOptions, disk: Client, server: Server, runtime: Tokio) -> Result<(), Box<dyn std::error::Error>> {", ".await", "# Ok(()) }",
}

nbd_io::driver_client! {
    /// Uses an export, from any number of tasks.
    ///
    /// ```no_run
    /// # async fn f() -> Result<(), nbd_tokio::Error> {
    /// let disk = nbd_tokio::connect("nbd://localhost/disk").await?;
    /// let sector = disk.read(0, 512).await?;
    /// disk.write(sector, 4096).await?;
    /// disk.flush().await?;
    /// disk.disconnect().await
    /// # }
    /// ```
    runtime: Tokio,
    examples: "# use {nbd_tokio::{*, bytes, exports::*, nbd_proto}, std::{sync::Arc, time::Duration}}; async fn example(options: ConnectOptions, disk: Client, server: Server, runtime: Tokio) -> Result<(), Box<dyn std::error::Error>> {", ".await", "# Ok(()) }",
}

nbd_io::driver_streams! {
    runtime: Tokio,
    examples: "# use {nbd_tokio::{*, bytes, exports::*, nbd_proto}, std::{sync::Arc, time::Duration}}; async fn example(options: ConnectOptions, disk: Client, server: Server, runtime: Tokio) -> Result<(), Box<dyn std::error::Error>> {", ".await", "# Ok(()) }",
}
