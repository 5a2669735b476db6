//! A client that any number of tasks share, on any runtime that is a
//! [`Network`](crate::runtime::Network).
//!
//! ```text
//!  ConnectOptions ── connect ──▶ Client ── read, write, … ──▶ pool of connections
//!        └── start ──▶ Haggling ──┘                           └─ link: one connection
//! ```

mod client;
mod cursor;
mod extents;
mod haggling;
mod link;
mod options;
mod overlaps;
mod plan;
mod pool;
mod ranges;
mod supervisor;
#[cfg(test)]
mod tests;
mod timed;
mod window;

pub use super::reconnect::{ConnectionState, Reconnect};
pub use client::Client;
pub use cursor::Cursor;
pub use extents::Extents;
pub use haggling::{ByName, Entered, Greeted, Haggling, RefusedStep};
pub use options::ConnectOptions;
