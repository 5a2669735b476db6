//! Properties of `nbd-proto`, and of the format of `nbd-object`, that must hold for any bytes.
//!
//! Every oracle takes any bytes and panics when something is wrong. The fuzz targets in `fuzz/` are
//! shims over them, and `cargo test` plays the seeds, past crashes and random bytes through the
//! same functions.
//!
//! The first bytes of an input are decisions (which options and commands to send, how a server
//! answers, how bytes are cut into pieces), the rest is the peer's bytes; see the seeds for
//! examples.

mod answer;
mod client;
mod delivery;
mod input;
mod loopback;
mod object_format;
pub mod seeds;
mod server;
mod uri;
mod wire;

pub use client::{client_negotiation, client_transmission};
pub use loopback::loopback;
pub use object_format::object_format;
pub use server::{server_negotiation, server_transmission};
pub use uri::uri;
pub use wire::wire;

/// Takes any bytes, and panics when a property does not hold.
pub type Oracle = fn(&[u8]);

/// Every oracle and the name of its fuzz target.
pub const ORACLES: [(&str, Oracle); 8] = [
    ("client_negotiation", client_negotiation),
    ("client_transmission", client_transmission),
    ("loopback", loopback),
    ("object_format", object_format),
    ("server_negotiation", server_negotiation),
    ("server_transmission", server_transmission),
    ("uri", uri),
    ("wire", wire),
];

/// The protocol's messages, written without the code under test.
#[path = "../../../nbd-proto/tests/common/bytes.rs"]
#[expect(
    dead_code,
    reason = "tests of nbd-proto need messages that the oracles do not"
)]
mod bytes;

/// The objects of a disk on object storage. It is private, and `nbd-object` would bring the clients
/// of all stores along.
#[path = "../../../nbd-object/src/format/mod.rs"]
#[expect(dead_code, reason = "nbd-object needs more of it than the oracle")]
mod format;

#[path = "../../../nbd-object/src/compression.rs"]
mod compression;

/// The errors of nbd-object that its compression has.
#[derive(Debug)]
enum Error {
    #[cfg(not(feature = "zstd"))]
    Unsupported(String),
}
