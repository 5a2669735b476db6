//! A client that any number of tasks share, on any runtime that is a
//! [`Network`](crate::runtime::Network).
//!
//! ```text
//!  ConnectOptions ── connect ──▶ Client ── read, write, … ──▶ pool of connections
//!        └── start ──▶ Negotiation ─┘                         └─ link: one connection
//! ```

mod alarm;
mod client;
mod common;
mod cursor;
mod driver;
mod extents;
mod link;
mod pool;
mod range_guard;
mod ranges;
mod read_into_error;
mod supervisor;
#[cfg(test)]
mod tests;
mod timed;
mod window;

pub use client::Client;
pub use cursor::Cursor;
pub use extents::Extents;
pub use read_into_error::ReadIntoError;
