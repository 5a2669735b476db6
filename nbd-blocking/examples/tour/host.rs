//! A server of the tour's own: memory exports on a private Unix socket, with and without TLS.

use crate::common::{Certificates, Outcome, Place, exports};
use nbd_blocking::{Listener, Server, Uri};
use std::{
    io,
    path::Path,
    thread::{self, JoinHandle},
};

/// A server that runs until it is stopped.
pub(crate) struct Host {
    uri: Uri,
    stop: Box<dyn FnOnce()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Host {
    /// Starts a server on a socket in `directory`. With certificates it refuses clients without
    /// TLS.
    pub(crate) fn start(directory: &Path, certificates: Option<&Certificates>) -> Outcome<Self> {
        let mut server = Server::new(exports()?);
        if let Some(certificates) = certificates {
            server = server.require_tls(&certificates.server()?)?;
        }
        let stopper = server.stopper();
        let Place { socket, uri } = Place::new(directory, certificates.is_some())?;
        let listener = Listener::bind_unix(socket)?;
        let thread = thread::spawn(move || server.serve(listener));
        Ok(Self {
            uri,
            stop: Box::new(move || stopper.stop()),
            thread,
        })
    }

    /// The walked export.
    pub(crate) const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Stops the server and waits for its end.
    pub(crate) fn stop(self) -> Outcome<()> {
        (self.stop)();
        self.thread.join().map_err(|_| "the server panicked")??;
        Ok(())
    }
}
