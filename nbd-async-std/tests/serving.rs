//! The server on async-std.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

#[path = "../../interop/adapters/remote.rs"]
mod remote;
#[path = "../../interop/adapters/serving/mod.rs"]
mod serving;

use async_std::task::block_on;
use nbd_async_std::{ConnectOptions, Listener, Server, exports::Remote};
use std::{io, sync::mpsc};

/// Runs a test; the process has a runtime that is always there.
fn on_runtime<R>(test: impl FnOnce() -> R) -> R {
    test()
}

/// Serves in a task, and sends the result.
fn serve(server: Server, listeners: Vec<nbd_socket::Listener>) -> mpsc::Receiver<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    async_std::task::spawn(async move {
        let listeners = listeners.into_iter().map(Listener::new);
        let served = async {
            server
                .serve(listeners.collect::<io::Result<Vec<_>>>()?)
                .await
        };
        sender.send(served.await)
    });
    receiver
}
