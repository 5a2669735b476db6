#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod listener;
mod runtime;
mod socket;
mod stream;

pub use listener::Listener;
pub use nbd_socket;
pub use runtime::Tokio;
pub use socket::Socket;
pub use stream::Stream;

/// Serves exports to any number of clients, from a [`Listener`] or any transport.
pub type Server = nbd_io::server::Server<Tokio>;
