//! The tests of `client`, on Tokio.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so does its helper"
)]

mod driver;
mod futures;
#[expect(dead_code, reason = "others need more of it")]
#[path = "../waiting/mod.rs"]
mod waiting;

#[path = "../client/addresses.rs"]
mod addresses;
#[path = "../client/certificates.rs"]
mod certificates;
#[path = "../client/nbd_server.rs"]
mod nbd_server;
#[path = "../client/nbdkit.rs"]
mod nbdkit;
#[path = "../client/nbdkit_filters.rs"]
mod nbdkit_filters;
#[path = "../client/order.rs"]
mod order;
#[path = "../client/peers.rs"]
mod peers;
#[path = "../client/processes.rs"]
mod processes;
#[path = "../client/qemu.rs"]
mod qemu;
#[path = "../client/steps.rs"]
mod steps;
#[path = "../client/support.rs"]
mod support;
#[path = "../client/table.rs"]
mod table;
#[path = "../client/tls.rs"]
mod tls;
