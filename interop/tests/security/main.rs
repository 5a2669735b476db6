//! Attacks over real sockets on either role of every driver, with memory and time bounded.
//!
//! Each published vulnerability of another implementation is replayed by the test of its name.
//! `docs/security.md` lists them; a test compares it with this program.

#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so does its helper"
)]

mod bounded;
mod clients;
mod crowd;
mod drivers;
mod extents;
mod hostile_clients;
mod hostile_servers;
mod negotiated;
mod raw;
mod relay;
mod servers;
mod several;
mod status;
mod table;
mod tls;
mod vulnerable;
#[expect(dead_code, reason = "others need more of it")]
#[path = "../waiting/mod.rs"]
mod waiting;
