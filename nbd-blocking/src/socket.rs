//! Connecting to servers.

use crate::{Error, patience::Patience};
use nbd_proto::uri::Address;
pub(crate) use nbd_socket::Socket;
use nbd_socket::{Reactor, Waiting};
use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Connects by waiting until a deadline, but no longer at a time than a dial may.
struct Patient<'a> {
    deadline: Option<Instant>,
    patience: &'a Patience,
}

impl Reactor for Patient<'_> {
    type Socket = Socket;

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Waiting(self.deadline).resolve(host, port).await
    }

    fn register(&self, socket: Socket) -> io::Result<Socket> {
        Ok(socket)
    }

    async fn writable(&self, socket: &Socket) -> io::Result<()> {
        poll_fn(|_| self.patience.poll(socket, false, true, self.deadline)).await
    }

    async fn pause(&self, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        poll_fn(|_| self.patience.poll_pause(end, self.deadline)).await
    }
}

pub(crate) async fn connect(
    address: &Address,
    deadline: Option<Instant>,
    patience: &Patience,
) -> Result<Socket, Error> {
    let patient = Patient { deadline, patience };
    let connected = nbd_socket::connect(&patient, address).await;
    connected
        .and_then(Socket::blocking)
        .map_err(|source| Error::Connect {
            to: address_name(address),
            source: Arc::new(source),
        })
}

/// How errors name an address.
fn address_name(address: &Address) -> String {
    match address {
        Address::Tcp { host, port, .. } if host.as_str().contains(':') => {
            format!("[{}]:{port}", host.as_str())
        }
        Address::Tcp { host, port, .. } => format!("{}:{port}", host.as_str()),
        Address::Unix { path, .. } => String::from_utf8_lossy(path).into_owned(),
        Address::Abstract { name, .. } => format!("@{}", String::from_utf8_lossy(name)),
        Address::Vsock { cid, port, .. } => format!("vsock {cid}:{port}"),
        _ => "the server".to_owned(),
    }
}
