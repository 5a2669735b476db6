//! Plain threads, as the tests of all runtimes see them.

use nbd_blocking::server::{Listener, Serve, Server};
use std::{io, sync::mpsc, thread};

/// Runs a test; threads are a runtime that is always there.
pub(crate) fn on_runtime<R>(test: impl FnOnce() -> R) -> R {
    test()
}

/// Serves in another thread, which tells how that ended.
pub(crate) fn serve(server: Server, listeners: Vec<Listener>) -> mpsc::Receiver<io::Result<()>> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(server.serve_listeners(listeners)));
    told
}
