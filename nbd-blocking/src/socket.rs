//! Connecting to servers.

use crate::{Error, patience::Patience};
use nbd_io::client::DialOptions;
use nbd_proto::uri::Address;
pub(crate) use nbd_socket::Socket;
use nbd_socket::{Awaited, Reactor};
use std::{future::poll_fn, io, time::Instant};

impl Reactor for Patience {
    type Socket = Socket;

    fn register(&self, socket: Socket) -> io::Result<Socket> {
        Ok(socket)
    }

    fn clock(&self) -> Instant {
        self.now()
    }

    async fn wait(&self, what: Awaited<'_, Socket>, until: Option<Instant>) -> io::Result<()> {
        poll_fn(|_| self.poll_for(&what, until)).await
    }
}

pub(crate) async fn connect(
    address: &Address,
    options: &DialOptions,
    patience: &Patience,
) -> Result<Socket, Error> {
    let connected = nbd_socket::connect(patience, address, options).await;
    connected
        .and_then(Socket::blocking)
        .map_err(|error| Error::connect(address, error))
}
