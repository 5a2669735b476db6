#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod child;
mod connect;
mod launch;
mod listener;
mod socket;
mod vsock;

pub use connect::{Reactor, Waiting, connect};
pub use launch::Launch;
pub use listener::Listener;
pub use socket::Socket;
