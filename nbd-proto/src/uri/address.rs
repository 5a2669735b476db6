//! Where a server listens.

use alloc::{
    borrow::ToOwned,
    string::{String, ToString},
};
use core::net::Ipv6Addr;

use bytes::Bytes;

use super::error::{ValueError, check_bytes};

/// The longest name of a Unix domain socket, in bytes.
///
/// It is Linux's: `sun_path` has 108 bytes, one of which is the NUL after a path or the NUL before
/// an abstract name. Other systems have fewer, and theirs is checked where the socket is opened.
pub const MAX_SOCKET: usize = 107;

/// Where a server listens.
///
/// Values come from a [`Uri`](super::Uri) and are always legal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A Unix domain socket in Linux's abstract namespace.
    #[non_exhaustive]
    Abstract {
        /// Its name without the leading NUL: 1 to [`MAX_SOCKET`] bytes, none of them NUL.
        name: Bytes,
    },
    /// A TCP port.
    #[non_exhaustive]
    Tcp {
        /// A name to be resolved, or an IP address.
        host: Host,
        /// The port, never 0.
        port: u16,
    },
    /// A Unix domain socket in the file system.
    #[non_exhaustive]
    Unix {
        /// Its path, relative or absolute: 1 to [`MAX_SOCKET`] bytes, none of them NUL.
        path: Bytes,
    },
    /// A port of a virtual machine or of its host.
    #[non_exhaustive]
    Vsock {
        /// The context identifier; 2 is the host. Never the wildcard `u32::MAX`.
        cid: u32,
        /// The port, neither 0 nor the wildcard `u32::MAX`.
        port: u32,
    },
}

impl Address {
    pub(super) fn tcp(host: Host, port: u16) -> Result<Self, ValueError> {
        if port == 0 {
            return Err(ValueError::out_of_range("0", 1, u16::MAX.into()));
        }
        Ok(Self::Tcp { host, port })
    }

    pub(super) fn unix(path: &[u8]) -> Result<Self, ValueError> {
        check_socket(path)?;
        Ok(Self::Unix {
            path: Bytes::copy_from_slice(path),
        })
    }

    pub(super) fn abstract_socket(name: &[u8]) -> Result<Self, ValueError> {
        check_socket(name)?;
        Ok(Self::Abstract {
            name: Bytes::copy_from_slice(name),
        })
    }

    pub(super) fn vsock(cid: u32, port: u32) -> Result<Self, ValueError> {
        let cid = Self::check_cid(cid)?;
        if port == 0 || port == u32::MAX {
            return Err(ValueError::out_of_range(&port.to_string(), 1, u32::MAX - 1));
        }
        Ok(Self::Vsock { cid, port })
    }

    pub(super) fn check_cid(cid: u32) -> Result<u32, ValueError> {
        if cid == u32::MAX {
            return Err(ValueError::out_of_range(&cid.to_string(), 0, u32::MAX - 1));
        }
        Ok(cid)
    }
}

fn check_socket(name: &[u8]) -> Result<(), ValueError> {
    check_bytes(name)?;
    if name.len() > MAX_SOCKET {
        return Err(ValueError::SocketTooLong { len: name.len() });
    }
    Ok(())
}

/// A name to be resolved, or an IP address.
///
/// Spec: [NBD URI], which takes its hosts from RFC 3986. An IPv6 address is kept without brackets
/// and in canonical form; its zone, as in `fe80::1%eth0`, follows RFC 6874.
///
/// [NBD URI]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host(String);

impl Host {
    /// Checks that `host` is a name, an IPv4 address, or an IPv6 address without brackets.
    ///
    /// # Errors
    ///
    /// When it is empty; contains white space, a control character or one of `/?#[]@\%`; or
    /// contains `:` without being an IPv6 address.
    pub fn new(host: &str) -> Result<Self, ValueError> {
        if !host.contains(':') {
            return Self::name(host);
        }
        match host.split_once('%') {
            Some((address, zone)) => Self::ipv6(address, Some(zone)),
            None => Self::ipv6(host, None),
        }
    }

    pub(super) fn name(name: &str) -> Result<Self, ValueError> {
        check_host(name)?;
        Ok(Self(name.to_owned()))
    }

    pub(super) fn ipv6(address: &str, zone: Option<&str>) -> Result<Self, ValueError> {
        let mut host = address
            .parse::<Ipv6Addr>()
            .map_err(|_| ValueError::Ipv6)?
            .to_string();
        if let Some(zone) = zone {
            check_host(zone)?;
            host.push('%');
            host.push_str(zone);
        }
        Ok(Self(host))
    }

    pub(super) fn localhost() -> Self {
        Self("localhost".to_owned())
    }

    /// The host as resolvers take it: without brackets, with the zone if there is one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The IPv6 address and its zone, unless this is a name or an IPv4 address.
    pub(super) fn as_ipv6(&self) -> Option<(&str, Option<&str>)> {
        // INVARIANT: a name contains no colon.
        self.0.contains(':').then(|| {
            self.0
                .split_once('%')
                .map_or((self.as_str(), None), |(ip, zone)| (ip, Some(zone)))
        })
    }
}

/// Refuses text that cannot be a name of a host or of a network interface, or that another reader
/// of this host could take for the end of it.
fn check_host(name: &str) -> Result<(), ValueError> {
    check_bytes(name.as_bytes())?;
    let wrong = |c: char| c.is_whitespace() || c.is_control() || "/?#[]@\\%:".contains(c);
    match name.chars().find(|c| wrong(*c)) {
        Some(got) => Err(ValueError::HostCharacter { got }),
        None => Ok(()),
    }
}
