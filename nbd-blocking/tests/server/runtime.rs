//! Plain threads, as the tests of all runtimes see them.

use nbd_blocking::Server;
use nbd_socket::Listener;
use std::{io, sync::mpsc, thread};

/// Runs a test; threads are a runtime that is always there.
pub(crate) fn on_runtime<R>(test: impl FnOnce() -> R) -> R {
    test()
}

/// Serves in another thread, and sends the result.
pub(crate) fn serve(server: Server, listeners: Vec<Listener>) -> mpsc::Receiver<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let listeners = listeners.into_iter().map(nbd_blocking::Listener::new);
        let listeners = listeners.collect::<Result<Vec<_>, _>>();
        sender.send(listeners.and_then(|listeners| server.serve(listeners)))
    });
    receiver
}
