//! A server of the tour's own: memory exports on a private Unix socket, with and without TLS.

use crate::walk::Outcome;
use nbd_blocking::{Uri, server::Server};
use nbd_io::{Memory, NamedExports};
use nbd_proto::ExportName;
use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
};

/// Size of the export that is walked, in bytes. It costs what is written to it.
const SIZE: u64 = 1 << 30;

/// A server that runs until it is stopped.
pub(crate) struct Host {
    socket: PathBuf,
    stop: Box<dyn FnOnce()>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Host {
    /// Starts a server on a socket in `directory`.
    pub(crate) fn start(directory: &tempfile::TempDir, name: &str) -> Outcome<Self> {
        let disk = Memory::new(SIZE).with_description("a disk in memory");
        let scratch = Memory::new(1 << 20).with_description("another one");
        let exports = NamedExports::new()
            .with(ExportName::new("disk")?, Arc::new(disk))
            .with(ExportName::new("scratch")?, Arc::new(scratch));
        let server = Server::new(exports);
        let stopper = server.stopper();
        let socket = directory.path().join(name);
        let listener = UnixListener::bind(&socket)?;
        let thread = thread::spawn(move || server.serve_unix(listener));
        Ok(Self {
            socket,
            stop: Box::new(move || stopper.stop()),
            thread,
        })
    }

    /// The walked export.
    pub(crate) fn uri(&self) -> Outcome<Uri> {
        let uri = Uri::unix(self.socket.as_os_str().as_encoded_bytes())?;
        Ok(uri.with_export(ExportName::new("disk")?))
    }

    /// Stops the server and waits for its end.
    pub(crate) fn stop(self) -> Outcome<()> {
        (self.stop)();
        self.thread.join().map_err(|_| "the server panicked")??;
        Ok(())
    }
}
