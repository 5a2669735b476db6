//! How a server waits, and which streams it can serve.

use super::Peer;
use crate::{
    runtime::{Network, Tasks},
    transport::Transport,
};
use std::{io, pin::Pin};

/// A runtime as the users of a [`Server`](super::Server) see it: what the calls that serve are for
/// them.
///
/// Each [`Network`] is one, whose calls are futures. `nbd-blocking` has one that waits in place.
pub trait Host: Tasks {
    /// What a call returns that has to wait: what has come of it, or a future of that.
    type Serving<'a, T: 'a>;

    /// Makes a call of a future.
    fn serving<'a, T: 'a>(
        future: impl Future<Output = io::Result<T>> + Send + 'a,
    ) -> Self::Serving<'a, T>;
}

/// A host that can serve a client over streams of the type `S`, which a program brings.
pub trait Take<S>: Host {
    /// Such a stream, to be read from and written to.
    type Transport: Transport + Send + 'static;

    /// Takes over a stream, and says who is at its other end.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    fn take(&self, stream: S) -> io::Result<(Self::Transport, Peer)>;
}

impl<R: Network> Host for R {
    type Serving<'a, T: 'a> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

    fn serving<'a, T: 'a>(
        future: impl Future<Output = io::Result<T>> + Send + 'a,
    ) -> Self::Serving<'a, T> {
        Box::pin(future)
    }
}

impl<R: Network, T: Transport + Send + 'static> Take<T> for R {
    type Transport = T;

    fn take(&self, stream: T) -> io::Result<(T, Peer)> {
        let peer = stream.peer();
        Ok((stream, peer))
    }
}
