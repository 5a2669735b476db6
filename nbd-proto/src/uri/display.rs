//! Writing a URI in its canonical form.
//!
//! Everything outside RFC 3986's "unreserved" is percent-encoded, except `/` in the export and in
//! paths; an IPv6 address gets its brackets; default values are left out.

use core::fmt::{self, Write as _};

use super::{Address, DEFAULT_PORT, Host, Uri, piece::is_unreserved};

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uri(self, self.user().map(Encoded::text), f)
    }
}

pub(super) struct Redacted<'a>(pub(super) &'a Uri);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uri(self.0, self.0.user().map(|_| "***"), f)
    }
}

fn write_uri(
    uri: &Uri,
    user: Option<impl fmt::Display>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    f.write_str(if uri.tls.is_some() { "nbds" } else { "nbd" })?;
    f.write_str(match uri.address {
        Address::Abstract { .. } | Address::Unix { .. } => "+unix",
        Address::Tcp { .. } => "",
        Address::Vsock { .. } => "+vsock",
    })?;
    f.write_str("://")?;
    if let Some(user) = user {
        write!(f, "{user}@")?;
    }
    match &uri.address {
        Address::Abstract { .. } | Address::Unix { .. } => {}
        Address::Tcp { host, port } => {
            write_host(host, f)?;
            write_port((*port).into(), f)?;
        }
        Address::Vsock { cid, port } => {
            write!(f, "{cid}")?;
            write_port(*port, f)?;
        }
    }
    write!(f, "/{}", Encoded::path(uri.export.as_str().as_bytes()))?;
    write_query(uri, f)
}

fn write_host(host: &Host, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match host.as_ipv6() {
        None => write!(f, "{}", Encoded::text(host.as_str())),
        Some((address, None)) => write!(f, "[{address}]"),
        Some((address, Some(zone))) => write!(f, "[{address}%25{}]", Encoded::text(zone)),
    }
}

fn write_port(port: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if port == u32::from(DEFAULT_PORT) {
        return Ok(());
    }
    write!(f, ":{port}")
}

fn write_query(uri: &Uri, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut separator = '?';
    let mut parameter = |name: &str, value: &dyn fmt::Display| {
        write!(f, "{separator}{name}={value}")?;
        separator = '&';
        Ok(())
    };
    match &uri.address {
        Address::Abstract { name } => {
            parameter("socket", &format_args!("%00{}", Encoded::path(name)))?;
        }
        Address::Unix { path } => parameter("socket", &Encoded::path(path))?,
        Address::Tcp { .. } | Address::Vsock { .. } => {}
    }
    let Some(tls) = &uri.tls else { return Ok(()) };
    if let Some(kind) = tls.kind() {
        parameter("tls-type", &kind.as_str())?;
    }
    if let Some(hostname) = tls.hostname() {
        parameter("tls-hostname", &Encoded::text(hostname.as_str()))?;
    }
    if !tls.verify_peer() {
        parameter("tls-verify-peer", &0)?;
    }
    if let Some(dir) = tls.certificates() {
        parameter("tls-certificates", &Encoded::path(dir))?;
    }
    if let Some(file) = tls.psk_file() {
        parameter("tls-psk-file", &Encoded::path(file))?;
    }
    Ok(())
}

/// Bytes in percent-encoding, with or without `/` as it is.
struct Encoded<'a> {
    bytes: &'a [u8],
    keep_slash: bool,
}

impl<'a> Encoded<'a> {
    fn text(text: &'a str) -> Self {
        Self {
            bytes: text.as_bytes(),
            keep_slash: false,
        }
    }

    fn path(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            keep_slash: true,
        }
    }
}

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.bytes {
            if is_unreserved(*byte) || (self.keep_slash && *byte == b'/') {
                f.write_char(char::from(*byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}
