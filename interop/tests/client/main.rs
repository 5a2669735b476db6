//! Our client against servers that others wrote.
//!
//! [`peers`] asks the same of all of them, over every transport, in the clear and encrypted; what
//! only one of them has is in a module of its own. [`table`] writes down who can do what.
//!
//! [`driver`] says which client it is: here the blocking one, the only one that has what [`queue`] is
//! about.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so does its helper"
)]

mod addresses;
mod driver;
mod nbd_server;
mod nbdkit;
mod nbdkit_filters;
mod order;
mod peers;
mod processes;
mod qemu;
mod queue;
mod support;
mod table;
mod tls;
