//! The way in which QEMU wrote where a server is before there were URIs.

use alloc::{borrow::ToOwned, string::String};

use super::{
    DEFAULT_PORT, Uri,
    error::{Part, UriError, ValueError},
};
use crate::ExportName;

const EXPORT: &str = ":exportname=";

/// Parses `nbd:HOST:PORT` or `nbd:unix:PATH`, each perhaps with `:exportname=NAME` after it. Nothing
/// is percent-encoded, and the last part is all that follows, as it is.
pub(super) fn parse(text: &str) -> Result<Uri, UriError> {
    let rest = text
        .strip_prefix("nbd:")
        .ok_or_else(|| UriError::UnknownScheme {
            scheme: text.split(':').next().unwrap_or_default().to_owned(),
        })?;
    let begins = text.len() - rest.len();
    let (server, export) = match rest.find(EXPORT) {
        Some(at) => (
            &rest[..at],
            Some((at + EXPORT.len(), &rest[at + EXPORT.len()..])),
        ),
        None => (rest, None),
    };
    let wrong = |part, at| {
        move |reason| UriError::Value {
            part,
            at: begins + at,
            reason,
        }
    };
    let uri = if let Some(path) = server.strip_prefix("unix:") {
        Uri::unix(path).map_err(wrong(Part::Parameter("socket"), "unix:".len()))?
    } else {
        let (host, port) = host_and_port(server).map_err(wrong(Part::Port, 0))?;
        Uri::tcp(&host, port).map_err(wrong(Part::Host, 0))?
    };
    match export {
        Some((at, name)) => ExportName::new(name)
            .map(|name| uri.with_export(name))
            .map_err(|error| wrong(Part::Export, at)(ValueError::Export(error))),
        None => Ok(uri),
    }
}

/// Splits the server's part. An IPv6 address stands in brackets.
fn host_and_port(server: &str) -> Result<(String, u16), ValueError> {
    let (host, port) = if server.starts_with('[') {
        let end = server.find(']').ok_or(ValueError::Ipv6)? + 1;
        (&server[..end], server[end..].strip_prefix(':'))
    } else {
        match server.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        }
    };
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let Some(port) = port else {
        return Ok((host, DEFAULT_PORT));
    };
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ValueError::NotANumber);
    }
    match port.parse() {
        Ok(port) if port != 0 => Ok((host, port)),
        _ => Err(ValueError::out_of_range(port, 1, u16::MAX.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn each_form_names_the_same_as_its_uri() {
        for (qemu, uri) in [
            ("nbd:localhost:10810", "nbd://localhost:10810"),
            ("nbd:localhost", "nbd://localhost"),
            (
                "nbd:[::1]:10810:exportname=a:b/c d",
                "nbd://[::1]:10810/a:b%2Fc%20d",
            ),
            ("nbd:host:1:exportname=", "nbd://host:1"),
            (
                "nbd:unix:/run/nbd.sock",
                "nbd+unix:///?socket=/run/nbd.sock",
            ),
            (
                "nbd:unix:/run/a:b:exportname=%41",
                "nbd+unix:///%2541?socket=/run/a:b",
            ),
        ] {
            let expected: Uri = uri.parse().unwrap();
            assert_eq!(parse(qemu), Ok(expected), "{qemu}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (text, error) in [
            (
                "nbd:host:x",
                "the port at byte 4: expected a decimal number",
            ),
            (
                "nbd:host:0",
                "the port at byte 4: expected a number from 1 to 65535, got 0",
            ),
            ("nbd::1", "the host at byte 4: expected a value, got none"),
            (
                "nbd:h:1:exportname=a\0",
                "the export name at byte 19: a string must not contain NUL, this one does at byte 1",
            ),
            (
                "nbd:unix:",
                "the value of `socket` at byte 9: expected a value, got none",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), error, "{text}");
        }
    }
}
