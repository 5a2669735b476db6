//! Clients and servers in one thread, on a network and a disk that fail as a seed says.
//!
//! ```text
//!  seed ── Plan ──▶ run ──▶ Events ──▶ oracle ──▶ broken promises
//!                    │
//!   Programs ── nbd-io's client ══ network ══ nbd-io's server ── Disk, or nbd-object ══ Store
//!        └────────────── all on Sim, the runtime ───────────────┘
//! ```
//!
//! `nbd-io` opens no socket, reads no clock and starts no thread, so that its client, pool,
//! reconnecting and server run here as they are. Everything that happens follows from the seed.

#![forbid(unsafe_code)]

pub mod client;
pub mod content;
mod deadlines;
pub mod disk;
pub mod history;
pub mod network;
pub mod object;
pub mod oracle;
pub mod plan;
pub mod run;
pub mod runtime;
pub mod shrink;
pub mod threads;
