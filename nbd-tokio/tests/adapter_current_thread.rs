//! Tokio as a runtime, all in one thread.

#![cfg(feature = "tls-base")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod streams;
#[path = "../../interop/adapters/mod.rs"]
mod suite;

use nbd_tokio::{Cursor, Listener, Socket, Tokio};
use tokio::runtime::Builder;

/// Runs a test on a runtime of its own.
fn on_runtime(test: impl AsyncFnOnce(Tokio)) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(Tokio::new(runtime.handle().clone())));
}
