//! The tests of `server`, on Tokio.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so does its helper"
)]

mod runtime;

#[path = "../server/block_jobs.rs"]
mod block_jobs;
#[path = "../server/chains.rs"]
mod chains;
#[path = "../server/clients.rs"]
mod clients;
#[path = "../server/exports.rs"]
mod exports;
#[path = "../server/fio.rs"]
mod fio;
#[path = "../server/nbd_client.rs"]
mod nbd_client;
#[path = "../server/nbdcopy.rs"]
mod nbdcopy;
#[path = "../server/nbdinfo.rs"]
mod nbdinfo;
#[path = "../server/nbdsh.rs"]
mod nbdsh;
#[path = "../server/qemu.rs"]
mod qemu;
#[path = "../server/qemu_img.rs"]
mod qemu_img;
#[path = "../server/serving.rs"]
mod serving;
#[path = "../server/table.rs"]
mod table;
#[path = "../server/tls.rs"]
mod tls;
