//! Sockets between a virtual machine and its host, which only Linux has.

use nbd_io::server::Peer;
use socket2::SockAddr;
use std::io;

#[cfg(target_os = "linux")]
#[expect(
    clippy::unnecessary_wraps,
    reason = "other systems have no such addresses"
)]
pub(crate) fn address(cid: u32, port: u32) -> io::Result<SockAddr> {
    Ok(SockAddr::vsock(cid, port))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn address(_: u32, _: u32) -> io::Result<SockAddr> {
    Err(crate::connect::unsupported())
}

/// The peer with this address, if it is a virtual machine or a host.
#[cfg(target_os = "linux")]
pub(crate) fn peer(address: &SockAddr) -> Option<Peer> {
    let (cid, port) = address.as_vsock_address()?;
    Some(Peer::Vsock { cid, port })
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn peer(_: &SockAddr) -> Option<Peer> {
    None
}
