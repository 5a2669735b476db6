//! Serving on Tokio.

use nbd_tokio::{Listener, Server};
use std::{io, panic, sync::mpsc};
use tokio::{
    runtime::{Builder, Handle},
    task,
};

/// Runs a test that waits by itself, in the context of a runtime.
pub(crate) fn on_runtime<R: Send + 'static>(
    mut builder: Builder,
    test: impl FnOnce() -> R + Send + 'static,
) -> R {
    let runtime = builder.enable_all().build().unwrap();
    let ended = runtime.block_on(async { task::spawn_blocking(test).await });
    ended.unwrap_or_else(|error| panic::resume_unwind(error.into_panic()))
}

/// Serves in a task, and sends the result.
pub(crate) fn serve(
    server: Server,
    listeners: Vec<nbd_socket::Listener>,
) -> mpsc::Receiver<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    Handle::current().spawn(async move {
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
