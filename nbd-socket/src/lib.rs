#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod child;
mod connect;
mod socket;

pub use connect::{Reactor, Waiting, connect};
pub use socket::Socket;
