#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod child;
mod connect;
mod driver;
mod listener;
mod lookup;
mod socket;
mod vsock;

pub use connect::{Awaited, Reactor, Unreachable, Waiting, connect};
pub use listener::Listener;
pub use lookup::Lookup;
pub use socket::{Family, Socket};
