//! The server on a runtime of Tokio's, with a thread for each processor.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

#[path = "../../interop/adapters/remote.rs"]
mod remote;
#[path = "../../interop/adapters/serving/mod.rs"]
mod serving;
mod support;

use nbd_tokio::{ConnectOptions, Server, exports::Remote};
use support::serve;
use tokio::runtime::{Builder, Handle};

/// Runs a test in the context of a runtime of its own.
fn on_runtime<R: Send + 'static>(test: impl FnOnce() -> R + Send + 'static) -> R {
    support::on_runtime(Builder::new_multi_thread(), test)
}

fn block_on<F: Future>(future: F) -> F::Output {
    Handle::current().block_on(future)
}
