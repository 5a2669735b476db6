//! Connecting to servers.

use crate::Error;
use nbd_io::transport::block_on_ready;
use nbd_proto::uri::Address;
pub(crate) use nbd_socket::Socket;
use nbd_socket::Waiting;
use std::{sync::Arc, time::Instant};

pub(crate) fn connect(address: &Address, deadline: Option<Instant>) -> Result<Socket, Error> {
    block_on_ready(nbd_socket::connect(&Waiting(deadline), address))
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
