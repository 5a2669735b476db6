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
pub use nbd_io::client::shared::{ConnectionState, Reconnect};
pub use nbd_socket;
pub use runtime::Tokio;
pub use socket::Socket;
pub use stream::Stream;

/// Serves exports to any number of clients, from a [`Listener`] or any transport.
pub type Server = nbd_io::server::Server<Tokio>;

/// Uses an export, from any number of tasks.
pub type Client = nbd_io::client::shared::Client<Tokio>;

/// How to reach an export, and what to ask for.
pub type ConnectOptions = nbd_io::client::shared::ConnectOptions<Tokio>;

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
pub async fn connect(uri: &str) -> Result<Client, nbd_io::client::Error> {
    ConnectOptions::new().connect(uri).await
}
