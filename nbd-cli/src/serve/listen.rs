//! Addresses that clients connect to.

use super::owner::Owner;
use crate::{
    interrupt::Directory,
    outcome::{Context, Error, Result},
};
use clap::Args;
use nbd_blocking::nbd_socket::Listener;
use nbd_tokio::Uri;
use rustix::{fs::Mode, process::umask};
use std::{
    io,
    net::SocketAddr,
    os::unix::{ffi::OsStrExt, fs::chown},
    path::{Path, PathBuf},
    str::FromStr,
};

/// The port of NBD.
const PORT: u16 = 10809;

/// The name of this machine, in words that a URI can have.
const LOCALHOST: &str = "localhost";

/// `VMADDR_CID_LOCAL`: this machine among virtual machines.
const LOCAL_CID: u32 = 1;

/// Addresses to listen at.
#[derive(Args, Debug)]
#[command(next_help_heading = "Addresses and TLS")]
pub(super) struct Listen {
    /// TCP: HOST, PORT or HOST:PORT [default: localhost].
    ///
    /// `*` is all addresses, and port 0 a free one. The default port is 10809.
    #[arg(long, value_name = "ADDR", group = "address")]
    listen: Vec<TcpAddress>,
    /// A Unix socket.
    ///
    /// That of a dead server is replaced.
    #[arg(long, value_name = "PATH", group = "address")]
    unix: Vec<PathBuf>,
    /// Permissions of Unix sockets, such as 660.
    #[arg(long, value_name = "MODE", requires = "unix", value_parser = mode)]
    unix_mode: Option<Mode>,
    /// Their owner: USER, USER:GROUP or :GROUP.
    #[arg(long, value_name = "OWNER", requires = "unix")]
    unix_owner: Option<Owner>,
    /// Port for virtual machines, and for this one.
    #[arg(long, value_name = "PORT", group = "address")]
    vsock: Vec<u32>,
    /// One client on standard input and output.
    #[arg(long, conflicts_with_all = ["address", "command"])]
    pub(super) stdio: bool,
}

/// The sockets that clients connect to.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) listeners: Vec<Listener>,
    /// URIs of these sockets, for clients.
    pub(super) uris: Vec<Uri>,
    /// The directory of a socket that was made for a command.
    pub(super) directory: Option<Directory>,
}

impl Listen {
    /// The sockets that the process was started with, unless others are asked for.
    pub(super) fn inherited(&self) -> Result<Vec<Listener>> {
        let has_address = self.stdio
            || !(self.listen.is_empty() && self.unix.is_empty() && self.vsock.is_empty());
        if has_address {
            return Ok(Vec::new());
        }
        Listener::inherited().step(|| "cannot use the sockets of socket activation")
    }

    /// Listens. Without an address, at the sockets that the process was started with, for a command
    /// at one that only this user can reach, or else at localhost.
    pub(super) fn bind(&self, inherited: Vec<Listener>, is_for_command: bool) -> Result<Sockets> {
        let mut sockets = Sockets {
            listeners: Vec::new(),
            uris: Vec::new(),
            directory: None,
        };
        for address in &self.listen {
            sockets.tcp(address)?;
        }
        for path in &self.unix {
            self.unix(path, &mut sockets)?;
        }
        for port in &self.vsock {
            let listener = Listener::bind_vsock(None, *port);
            let listener = listener.step(|| format!("cannot listen at port {port} of vsock"))?;
            sockets.listeners.push(listener);
            sockets.uris.extend(Uri::vsock(LOCAL_CID, *port).ok());
        }
        for listener in inherited {
            sockets
                .uris
                .extend(listener.local_addr().ok().and_then(uri));
            sockets.listeners.push(listener);
        }
        if !sockets.listeners.is_empty() {
            return Ok(sockets);
        }
        if is_for_command {
            let directory = Directory::new("nbd-");
            let directory = directory.step(|| "cannot make a directory for a socket")?;
            self.unix(&directory.path().join("s"), &mut sockets)?;
            sockets.directory = Some(directory);
        } else {
            sockets.tcp(&TcpAddress::port(PORT))?;
        }
        Ok(sockets)
    }

    fn unix(&self, path: &Path, sockets: &mut Sockets) -> Result<()> {
        // No client gets in that the mode does not let in, not even for a moment.
        let before = self
            .unix_mode
            .map(|mode| umask(mode.complement() & Mode::from_bits_retain(0o777)));
        let bound = Listener::bind_unix(path);
        if let Some(before) = before {
            umask(before);
        }
        let listener = bound.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse if path.exists() => Error::new(format!(
                "cannot listen at {0}: another server listens there, or it is no socket; \
                 stop that server, or remove {0}",
                path.display()
            )),
            _ => Error::Step {
                what: format!("cannot listen at {}", path.display()),
                source: error.into(),
            },
        })?;
        if let Some(Owner { user, group }) = self.unix_owner {
            chown(path, user, group).step(|| format!("cannot give {} away", path.display()))?;
        }
        sockets.listeners.push(listener);
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        sockets
            .uris
            .extend(Uri::unix(absolute.as_os_str().as_bytes()).ok());
        Ok(())
    }
}

impl Sockets {
    fn tcp(&mut self, address: &TcpAddress) -> Result<()> {
        for listener in address.bind()? {
            self.uris.extend(listener.local_addr().ok().and_then(uri));
            self.listeners.push(listener);
        }
        Ok(())
    }
}

/// The URI of an address for clients of this machine, or for others if it is an address that they
/// know.
fn uri(address: SocketAddr) -> Option<Uri> {
    let host = if address.ip().is_unspecified() {
        LOCALHOST.to_owned()
    } else {
        address.ip().to_string()
    };
    Uri::tcp(&host, address.port()).ok()
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TcpAddress {
    host: String,
    port: u16,
}

impl TcpAddress {
    fn port(port: u16) -> Self {
        Self {
            host: LOCALHOST.to_owned(),
            port,
        }
    }

    pub(super) fn bind(&self) -> Result<Vec<Listener>> {
        self.bind_all()
            .step(|| format!("cannot listen at {}:{}", self.host, self.port))
    }

    fn bind_all(&self) -> io::Result<Vec<Listener>> {
        if self.host != "*" {
            return Listener::bind_tcp((&*self.host, self.port));
        }
        // One socket takes both families, where there are both.
        let both = Listener::bind_tcp(("::", self.port));
        both.or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            _ => Listener::bind_tcp(("0.0.0.0", self.port)),
        })
    }
}

impl FromStr for TcpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            text.parse::<u16>()
                .map_err(|_| format!("expected a port from 0 to 65535, got \"{text}\""))
        };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest
                .split_once(']')
                .ok_or("expected a \"]\" after the address")?;
            match rest.strip_prefix(':') {
                Some(number) => (host, port(number)?),
                None if rest.is_empty() => (host, PORT),
                None => return Err(format!("expected :PORT after the \"]\", got \"{rest}\"")),
            }
        } else if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            (LOCALHOST, port(text)?)
        } else {
            match text.split_once(':') {
                // More than one stand in an address of IPv6.
                Some((_, rest)) if rest.contains(':') => (text, PORT),
                Some((host, number)) => (host, port(number)?),
                None => (text, PORT),
            }
        };
        let host = if host.is_empty() { LOCALHOST } else { host };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// Permissions in octal digits.
fn mode(text: &str) -> Result<Mode, String> {
    let bits = u32::from_str_radix(text, 8)
        .ok()
        .filter(|bits| *bits <= 0o777);
    bits.map(Mode::from_bits_retain)
        .ok_or_else(|| format!("expected octal permissions up to 777, got \"{text}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_or_a_port_or_both() {
        for (text, host, port) in [
            ("example.com", "example.com", PORT),
            ("example.com:1", "example.com", 1),
            ("*", "*", PORT),
            ("*:7", "*", 7),
            ("0", LOCALHOST, 0),
            (":7", LOCALHOST, 7),
            ("127.0.0.1:0", "127.0.0.1", 0),
            ("::1", "::1", PORT),
            ("[::1]", "::1", PORT),
            ("[::1]:8", "::1", 8),
        ] {
            let host = host.to_owned();
            assert_eq!(text.parse(), Ok(TcpAddress { host, port }), "{text}");
        }
        for wrong in ["a:", "a:b", "[::1", "[::1]8", "65536"] {
            assert!(wrong.parse::<TcpAddress>().is_err(), "{wrong}");
        }
        assert_eq!(mode("660").map(|mode| mode.bits()), Ok(0o660));
        assert!(mode("888").is_err() && mode("1777").is_err());
    }
}
