//! `nbd serve`, as its users have it.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod addresses;
mod commands;
mod disks;
mod limits;
mod logs;
mod metrics;
mod objects;
mod peers;
mod support;
mod tls;
