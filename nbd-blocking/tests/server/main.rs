//! The server: its behaviour on every runtime, and the rest that only this crate has.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

mod faults;
mod kernel;
#[cfg(target_os = "linux")]
mod limited;
mod remote;
mod runtime;
#[path = "../../../interop/adapters/serving/mod.rs"]
mod serving;
mod stock;
mod stopping;
#[cfg(feature = "tls-base")]
mod streams;
mod vanishing;
mod witness;

use nbd_blocking::Server;
use runtime::{on_runtime, serve};
use serving::support;
