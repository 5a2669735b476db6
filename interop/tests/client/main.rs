//! Our client against foreign servers.
//!
//! [`peers`] runs the same tests with all of them, over every transport, in the clear and
//! encrypted; features of a single server are in a module of its own. [`table`] makes the table of
//! features and servers.
//!
//! [`driver`] chooses the client: here the blocking one, the only one with the features of
//! [`queue`].

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so does its helper"
)]

mod addresses;
mod certificates;
mod driver;
mod nbd_server;
mod nbdkit;
mod nbdkit_filters;
mod order;
mod peers;
mod processes;
mod qemu;
mod queue;
mod steps;
mod support;
mod table;
mod tls;
