//! The blocking client against servers that others wrote.
//!
//! [`peers`] asks the same of all of them, over every transport, in the clear and encrypted; what
//! only one of them has is in a module of its own. [`table`] writes down who can do what.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so does its helper"
)]

mod nbd_server;
mod nbdkit;
mod nbdkit_filters;
mod order;
mod peers;
mod processes;
mod qemu;
mod support;
mod table;
mod tls;
