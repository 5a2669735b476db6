//! The server on plain threads.

use nbd_socket::Listener;
use std::io;

pub(crate) use nbd_blocking::Server;

/// The name of the server in docs/interoperability.md.
pub(crate) const NAME: &str = "nbd-blocking";

/// Serves in this thread until the server is stopped.
pub(crate) fn serve(server: &Server, listener: Listener) -> io::Result<()> {
    server.serve(nbd_blocking::Listener::new(listener)?)
}
