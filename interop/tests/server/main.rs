//! Our server with foreign clients.
//!
//! Each module is about one client; [`table`] makes the table of features and clients. [`serving`]
//! runs the server in this process and keeps its events, and [`exports`] log the calls that reached
//! the storage.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so does its helper"
)]

mod block_jobs;
mod chains;
mod clients;
mod exports;
mod fio;
mod nbd_client;
mod nbdcopy;
mod nbdinfo;
mod nbdsh;
mod qemu;
mod qemu_img;
mod runtime;
mod serving;
mod table;
mod tls;
