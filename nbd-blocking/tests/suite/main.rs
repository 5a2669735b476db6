//! The server: what it does on every runtime, and what is this crate's own.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

#[path = "../../../interop/adapters/serving/mod.rs"]
mod serving;
mod streams;

use nbd_blocking::server::{Listener, Serve, Server};
use std::{io, sync::mpsc, thread};

/// Runs a test; threads are a runtime that is always there.
fn on_runtime<R>(test: impl FnOnce() -> R) -> R {
    test()
}

/// Serves in another thread, which tells how that ended.
fn serve(server: Server, listeners: Vec<Listener>) -> mpsc::Receiver<io::Result<()>> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(server.serve_listeners(listeners)));
    told
}
