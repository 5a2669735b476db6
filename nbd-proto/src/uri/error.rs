//! Errors in URIs.

use alloc::{borrow::ToOwned, string::String};
use core::fmt;

use super::address::MAX_SOCKET;
use crate::{NameError, names::Quoted};

/// Reasons for which text is not an NBD URI, or not one that may be used.
///
/// Positions (`at`) count bytes from the start of the URI, beginning with 0. No message repeats the
/// user name, nor a password that stands after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// `tls-type=anon` from a source without [`Permissions::anonymous_tls`].
    ///
    /// [`Permissions::anonymous_tls`]: super::Permissions::anonymous_tls
    #[error(
        "`tls-type=anon` at byte {at} authenticates no peer and needs the permission \
         `anonymous_tls`"
    )]
    AnonymousTlsNotPermitted {
        /// Where the value stands.
        at: usize,
    },
    /// A character that must be percent-encoded where it stands.
    #[error("{got:?} at byte {at} must be percent-encoded in {part}")]
    Character {
        /// The part of the URI.
        part: Part,
        /// The character.
        got: char,
        /// Where it stands.
        at: usize,
    },
    /// A `%` that encodes nothing.
    #[error("expected two hexadecimal digits after the `%` at byte {at}")]
    Escape {
        /// Where the `%` stands.
        at: usize,
    },
    /// A `#`, which begins a fragment: an NBD URI has none.
    #[error("expected no fragment, but one begins at byte {at}; write `%23` for a `#`")]
    Fragment {
        /// Where the `#` stands.
        at: usize,
    },
    /// A host or a port where `socket` names the server.
    #[error("expected no host and port at byte {at}: `socket` names the server")]
    HostOfUnix {
        /// Where the host stands.
        at: usize,
    },
    /// A local file named by a source without [`Permissions::local_files`].
    ///
    /// [`Permissions::local_files`]: super::Permissions::local_files
    #[error("`{parameter}` at byte {at} names a local file and needs the permission `local_files`")]
    LocalFileNotPermitted {
        /// The parameter.
        parameter: &'static str,
        /// Where it stands.
        at: usize,
    },
    /// `nbds` without a host: there is no name to verify.
    #[error("expected a host at byte {at}: `nbds` must know whom to verify")]
    MissingHost {
        /// Where the host should stand.
        at: usize,
    },
    /// A known scheme without `://` after it.
    #[error("expected `://` at byte {at}, after the scheme `{scheme}`")]
    MissingSlashes {
        /// The scheme.
        scheme: &'static str,
        /// Where the `://` should stand.
        at: usize,
    },
    /// A `+unix` scheme without `socket`.
    #[error("expected the parameter `socket`: it names the server of a `+unix` URI")]
    MissingSocket,
    /// Not a URI at all.
    #[error(
        "expected a URI such as `nbd://host/export` or `nbd+unix:///export?socket=/path`, but \
         there is no scheme"
    )]
    NoScheme,
    /// A password: an NBD URI has none, and it would end up in logs.
    #[error("expected a user name only, but a password follows the `:` at byte {at}")]
    Password {
        /// Where the `:` stands.
        at: usize,
    },
    /// The same parameter twice.
    #[error("expected `{parameter}` only once, but at byte {at} it stands again")]
    RepeatedParameter {
        /// The parameter.
        parameter: &'static str,
        /// Where it stands again.
        at: usize,
    },
    /// `socket` where the host and port name the server.
    #[error("`socket` at byte {at} belongs to the schemes `nbd+unix` and `nbds+unix` only")]
    SocketWithoutUnix {
        /// Where it stands.
        at: usize,
    },
    /// A TLS parameter on a scheme that does not require TLS.
    #[error("`{parameter}` at byte {at} belongs to the schemes that require TLS, such as `nbds`")]
    TlsParameterWithoutTls {
        /// The parameter.
        parameter: &'static str,
        /// Where it stands.
        at: usize,
    },
    /// A parameter that this library does not know.
    #[error("the parameter `{}` at byte {at} is unknown", Quoted(name))]
    UnknownParameter {
        /// Its name.
        name: String,
        /// Where it stands.
        at: usize,
    },
    /// A scheme that is not NBD's, or not this library's.
    #[error(
        "expected the scheme `nbd` or `nbds`, perhaps with `+unix` or `+vsock`, got `{}`",
        Quoted(scheme)
    )]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// A part that cannot have this value.
    #[error("{part} at byte {at}: {reason}")]
    Value {
        /// The part of the URI.
        part: Part,
        /// Where its value stands.
        at: usize,
        /// The mistake in it, once it is percent-decoded.
        reason: ValueError,
    },
}

/// A part of a URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The text between the authority and the `?`.
    Export,
    /// The host: a name, an address, or a CID.
    Host,
    /// The value of a parameter.
    Parameter(&'static str),
    /// The name of a parameter.
    ParameterName,
    /// The text after the host.
    Port,
    /// The text before an `@`.
    User,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Export => f.write_str("the export name"),
            Self::Host => f.write_str("the host"),
            Self::Parameter(name) => write!(f, "the value of `{name}`"),
            Self::ParameterName => f.write_str("the name of a parameter"),
            Self::Port => f.write_str("the port"),
            Self::User => f.write_str("the user name"),
        }
    }
}

/// Reasons for which a part of a URI cannot have some value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// Nothing where something is needed.
    #[error("expected a value, got none")]
    Empty,
    /// Not an export name.
    #[error(transparent)]
    Export(NameError),
    /// A character that no host name has.
    #[error("expected a host name, got {got:?} in it")]
    HostCharacter {
        /// The character.
        got: char,
    },
    /// Not an IPv6 address.
    #[error(
        "expected an IPv6 address, in brackets when a host, as in `[::1]` or `[fe80::1%25eth0]`"
    )]
    Ipv6,
    /// Not a decimal number.
    #[error("expected a decimal number")]
    NotANumber,
    /// Not UTF-8.
    #[error("expected UTF-8, got a wrong byte after {offset} bytes")]
    NotUtf8 {
        /// Number of decoded bytes before the wrong one.
        offset: usize,
    },
    /// A NUL byte.
    #[error("expected no NUL, got one after {offset} bytes")]
    Nul {
        /// Number of decoded bytes before it.
        offset: usize,
    },
    /// A number that is too small or too large.
    #[error("expected a number from {min} to {max}, got {}", Quoted(got))]
    OutOfRange {
        /// The number.
        got: String,
        /// The smallest legal one.
        min: u32,
        /// The largest legal one.
        max: u32,
    },
    /// A path or an abstract name that fits no socket address.
    #[error("expected a socket of at most {MAX_SOCKET} bytes, got {len}")]
    SocketTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Not a type of TLS authentication.
    #[error("expected `anon`, `psk` or `x509`, got `{}`", Quoted(got))]
    TlsType {
        /// The actual value.
        got: String,
    },
    /// Neither 0 nor 1.
    #[error("expected `0` or `1`, got `{}`", Quoted(got))]
    VerifyPeer {
        /// The actual value.
        got: String,
    },
}

impl ValueError {
    pub(super) fn out_of_range(got: &str, min: u32, max: u32) -> Self {
        Self::OutOfRange {
            got: got.to_owned(),
            min,
            max,
        }
    }
}

/// Checks for bytes that no user, path or host may contain.
pub(super) fn check_bytes(value: &[u8]) -> Result<(), ValueError> {
    if value.is_empty() {
        return Err(ValueError::Empty);
    }
    match value.iter().position(|byte| *byte == 0) {
        Some(offset) => Err(ValueError::Nul { offset }),
        None => Ok(()),
    }
}
