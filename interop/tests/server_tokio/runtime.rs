//! The server on Tokio.

use nbd_socket::Listener;
use std::io;
use tokio::runtime::Runtime;

pub(crate) use nbd_tokio::Server;

/// The name of the server in docs/interoperability.md.
pub(crate) const NAME: &str = "nbd-tokio";

/// Serves in this thread, and others, until the server is stopped.
pub(crate) fn serve(server: &Server, listener: Listener) -> io::Result<()> {
    Runtime::new()?.block_on(async {
        let listener = nbd_tokio::Listener::new(listener)?;
        server.serve(listener).await
    })
}
