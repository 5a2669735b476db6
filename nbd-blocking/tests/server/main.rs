//! The server, with this crate's own client and with raw bytes as peers.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

mod faults;
mod kernel;
mod stopping;
mod support;
#[cfg(feature = "tls-base")]
mod tls;
mod vanishing;
