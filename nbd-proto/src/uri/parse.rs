//! Reading a URI: split the raw text, then percent-decode each part once.

use alloc::{borrow::ToOwned, string::String};
use core::str::FromStr;

use super::{
    Address, DEFAULT_PORT, Host, Part, Permissions, Uri, UriError, ValueError,
    error::check_bytes,
    piece::{Piece, is_pchar, is_reg_name, is_unreserved},
    query::Query,
};
use crate::ExportName;

pub(super) fn parse(uri: &str, permissions: Permissions) -> Result<Uri, UriError> {
    let (scheme, rest) = split_scheme(uri)?;
    if let Some(at) = uri.find('#') {
        return Err(UriError::Fragment { at });
    }
    let (hierarchy, query) = rest.split('?');
    let (authority, path) = hierarchy.split('/');
    let (user, server) = split_user(authority)?;
    // The server comes before the query: if an unencoded `/` or `?` in a password ended the
    // authority, its first half is refused as a port before its second half could be repeated as
    // the name of a parameter.
    let address = match scheme.transport {
        Transport::Tcp => Some(tcp(server, scheme)?),
        Transport::Unix if server.text.is_empty() => None,
        Transport::Unix => return Err(UriError::HostOfUnix { at: server.at }),
        Transport::Vsock => Some(vsock(server)?),
    };
    let export = match path {
        Some(name) => export(name)?,
        None => ExportName::default(),
    };
    let mut parameters = Query::new(address.is_none(), scheme.tls, permissions);
    if let Some(query) = query {
        parameters.read(query)?;
    }
    let (socket, tls) = parameters.finish();
    let address = address.or(socket).ok_or(UriError::MissingSocket)?;
    Ok(Uri {
        address,
        user,
        export,
        tls,
    })
}

#[derive(Clone, Copy)]
struct Scheme {
    transport: Transport,
    tls: bool,
}

#[derive(Clone, Copy)]
enum Transport {
    Tcp,
    Unix,
    Vsock,
}

const SCHEMES: [(&str, Transport, bool); 7] = [
    ("nbd", Transport::Tcp, false),
    ("nbd+tcp", Transport::Tcp, false),
    ("nbd+unix", Transport::Unix, false),
    ("nbd+vsock", Transport::Vsock, false),
    ("nbds", Transport::Tcp, true),
    ("nbds+unix", Transport::Unix, true),
    ("nbds+vsock", Transport::Vsock, true),
];

fn split_scheme(uri: &str) -> Result<(Scheme, Piece<'_>), UriError> {
    let (name, rest) = Piece { text: uri, at: 0 }.split(':');
    let mut letters = name.text.bytes();
    let legal = letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let Some(rest) = rest.filter(|_| legal) else {
        return Err(UriError::NoScheme);
    };
    let known = SCHEMES
        .iter()
        .find(|(scheme, ..)| scheme.eq_ignore_ascii_case(name.text));
    match (known, rest.strip_prefix("//")) {
        (Some(&(_, transport, tls)), Some(rest)) => Ok((Scheme { transport, tls }, rest)),
        (Some((scheme, ..)), None) => Err(UriError::MissingSlashes {
            scheme,
            at: name.text.len(),
        }),
        (None, Some(_)) => Err(UriError::UnknownScheme {
            scheme: name.text.to_owned(),
        }),
        // As in `localhost:10809`.
        (None, None) => Err(UriError::NoScheme),
    }
}

fn split_user(authority: Piece<'_>) -> Result<(Option<String>, Piece<'_>), UriError> {
    let (user, server) = match authority.split('@') {
        (server, None) => return Ok((None, server)),
        (user, Some(server)) => (user, server),
    };
    if let Some(colon) = user.text.find(':') {
        return Err(UriError::Password {
            at: user.at + colon,
        });
    }
    let name = user.decode_text(Part::User, is_reg_name)?;
    check_bytes(name.as_bytes()).map_err(|e| user.wrong(Part::User, e))?;
    Ok((Some(name), server))
}

fn tcp(server: Piece<'_>, scheme: Scheme) -> Result<Address, UriError> {
    let (host, port) = match server.strip_prefix("[") {
        Some(bracketed) => ipv6(bracketed)?,
        None => reg_name(server)?,
    };
    let host = match host {
        Some(host) => host,
        None if scheme.tls => return Err(UriError::MissingHost { at: server.at }),
        None => Host::localhost(),
    };
    port_number(port, DEFAULT_PORT, u16::MAX.into())
        .and_then(|number| Address::tcp(host, number))
        .map_err(|e| port.unwrap_or(server).wrong(Part::Port, e))
}

/// Splits the text behind the `[` of an IPv6 address; a zone is as in RFC 6874.
fn ipv6(bracketed: Piece<'_>) -> Result<(Option<Host>, Option<Piece<'_>>), UriError> {
    let (literal, after) = bracketed.split(']');
    let wrong = |e| literal.wrong(Part::Host, e);
    let Some((Piece { text: "", .. }, port)) = after.map(|after| after.split(':')) else {
        return Err(wrong(ValueError::Ipv6));
    };
    let (address, zone) = match literal.split('%') {
        (address, None) => (address, None),
        (address, Some(escape)) => {
            let zone = escape
                .strip_prefix("25")
                .ok_or_else(|| wrong(ValueError::Ipv6))?;
            (address, Some(zone.decode_text(Part::Host, is_unreserved)?))
        }
    };
    let host = Host::ipv6(address.text, zone.as_deref()).map_err(wrong)?;
    Ok((Some(host), port))
}

fn reg_name(server: Piece<'_>) -> Result<(Option<Host>, Option<Piece<'_>>), UriError> {
    let (host, port) = server.split(':');
    if port.is_some_and(|port| port.text.contains(':')) {
        return Err(server.wrong(Part::Host, ValueError::Ipv6));
    }
    let name = host.decode_text(Part::Host, is_reg_name)?;
    if name.is_empty() {
        return Ok((None, port));
    }
    // A name with a decoded colon is wrong, even if it looks like an IPv6 address.
    let name = Host::name(&name).map_err(|e| host.wrong(Part::Host, e))?;
    Ok((Some(name), port))
}

/// The CID of the host, the machine that runs the virtual machines.
const VMADDR_CID_HOST: u32 = 2;

fn vsock(server: Piece<'_>) -> Result<Address, UriError> {
    let (host, port) = server.split(':');
    let cid = match host.text {
        "" => VMADDR_CID_HOST,
        cid => decimal(cid, 0, u32::MAX - 1)
            .and_then(Address::check_cid)
            .map_err(|e| host.wrong(Part::Host, e))?,
    };
    port_number(port, DEFAULT_PORT.into(), u32::MAX - 1)
        .and_then(|number| Address::vsock(cid, number))
        .map_err(|e| port.unwrap_or(server).wrong(Part::Port, e))
}

fn port_number<N: FromStr>(port: Option<Piece<'_>>, absent: N, max: u32) -> Result<N, ValueError> {
    match port {
        Some(port) if !port.text.is_empty() => decimal(port.text, 1, max),
        _ => Ok(absent),
    }
}

/// Reads a number; text that is none is not repeated in the error, as it might be a password.
fn decimal<N: FromStr>(text: &str, min: u32, max: u32) -> Result<N, ValueError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ValueError::NotANumber);
    }
    // All digits and not empty: only its size can be wrong.
    text.parse()
        .map_err(|_| ValueError::out_of_range(text, min, max))
}

fn export(name: Piece<'_>) -> Result<ExportName, UriError> {
    let bytes = name.decode(Part::Export, |byte| is_pchar(byte) || byte == b'/')?;
    ExportName::try_from(&bytes[..]).map_err(|e| name.wrong(Part::Export, ValueError::Export(e)))
}
