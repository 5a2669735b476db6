//! A server of the tour's own: memory exports on a private Unix socket, with and without TLS, by
//! the same runtime as the client.

use crate::common::{Certificates, Outcome, Place, exports};
use futures_util::{FutureExt, future::RemoteHandle};
use nbd_io::{
    runtime::Network,
    server::{Listener, Server, Stopper},
};
use nbd_proto::Uri;
use std::{io, path::Path, sync::Arc};

/// A server that runs until it is stopped.
pub(crate) struct Host {
    uri: Uri,
    stopper: Stopper,
    served: RemoteHandle<io::Result<()>>,
}

impl Host {
    /// Starts a server on a socket in `directory`. With certificates it refuses clients without
    /// TLS.
    pub(crate) fn start<R: Network, L: Listener + Send + 'static>(
        runtime: &R,
        listen: fn(nbd_socket::Listener) -> io::Result<L>,
        directory: &Path,
        certificates: Option<&Certificates>,
    ) -> Outcome<Self> {
        let mut server = Server::on_runtime(runtime.clone(), Arc::new(exports()?));
        if let Some(certificates) = certificates {
            server = server.require_tls(&certificates.server()?)?;
        }
        let stopper = server.stopper();
        let Place { socket, uri } = Place::new(directory, certificates.is_some())?;
        let listener = listen(nbd_socket::Listener::bind_unix(socket)?)?;
        let (task, served) = async move { server.serve(listener).await }.remote_handle();
        runtime.spawn(task);
        Ok(Self {
            uri,
            stopper,
            served,
        })
    }

    /// The walked export.
    pub(crate) const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Stops the server and waits for its end.
    pub(crate) async fn stop(self) -> Outcome<()> {
        self.stopper.stop();
        Ok(self.served.await?)
    }
}
