//! The server on a runtime of Tokio's, with a thread for each processor.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

#[path = "support/remote.rs"]
mod remote;
#[path = "../../interop/adapters/serving/mod.rs"]
mod serving;
mod support;

use nbd_tokio::Server;
use support::serve;
use tokio::runtime::Builder;

/// Runs a test in the context of a runtime of its own.
fn on_runtime<R: Send + 'static>(test: impl FnOnce() -> R + Send + 'static) -> R {
    support::on_runtime(Builder::new_multi_thread(), test)
}
