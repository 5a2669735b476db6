//! Reading the parameters behind the `?`.

use alloc::{string::String, vec::Vec};
use core::str;

use super::{
    Address, Host, Part, Permissions, Tls, TlsType, UriError, ValueError,
    piece::{Piece, is_query},
};

/// Values of the parameters that have been read.
pub(super) struct Query {
    takes_socket: bool,
    requires_tls: bool,
    permissions: Permissions,
    seen: Vec<Parameter>,
    socket: Option<Address>,
    tls: Tls,
}

impl Query {
    pub(super) fn new(takes_socket: bool, requires_tls: bool, permissions: Permissions) -> Self {
        Self {
            takes_socket,
            requires_tls,
            permissions,
            seen: Vec::new(),
            socket: None,
            tls: Tls::new(),
        }
    }

    pub(super) fn read(&mut self, query: Piece<'_>) -> Result<(), UriError> {
        let mut unread = Some(query);
        while let Some(rest) = unread {
            let (piece, after) = rest.split('&');
            if !piece.text.is_empty() {
                self.read_one(piece)?;
            }
            unread = after;
        }
        Ok(())
    }

    fn read_one(&mut self, piece: Piece<'_>) -> Result<(), UriError> {
        let (name, value) = piece.split('=');
        let at = name.at;
        let name = name.decode(Part::ParameterName, is_query)?;
        let Some(parameter) = Parameter::named(&name) else {
            return Err(UriError::UnknownParameter {
                name: lossy(&name),
                at,
            });
        };
        if self.seen.contains(&parameter) {
            return Err(UriError::RepeatedParameter {
                parameter: parameter.name(),
                at,
            });
        }
        self.seen.push(parameter);
        self.check_place(parameter, at)?;

        let part = Part::Parameter(parameter.name());
        let value = value.unwrap_or(Piece {
            text: "",
            at: piece.at + piece.text.len(),
        });
        let bytes = value.decode(part, is_query)?;
        self.apply(parameter, &bytes)
            .map_err(|e| value.wrong(part, e))?;
        if self.tls.kind() == Some(TlsType::Anon) && !self.permissions.anonymous_tls {
            return Err(UriError::AnonymousTlsNotPermitted { at: value.at });
        }
        Ok(())
    }

    fn check_place(&self, parameter: Parameter, at: usize) -> Result<(), UriError> {
        let is_socket = parameter == Parameter::Socket;
        let names_a_file = matches!(
            parameter,
            Parameter::TlsCertificates | Parameter::TlsPskFile
        );
        let parameter = parameter.name();
        if is_socket && !self.takes_socket {
            return Err(UriError::SocketWithoutUnix { at });
        }
        if !is_socket && !self.requires_tls {
            return Err(UriError::TlsParameterWithoutTls { parameter, at });
        }
        if names_a_file && !self.permissions.local_files {
            return Err(UriError::LocalFileNotPermitted { parameter, at });
        }
        Ok(())
    }

    fn apply(&mut self, parameter: Parameter, value: &[u8]) -> Result<(), ValueError> {
        let tls = self.tls.clone();
        self.tls = match parameter {
            Parameter::Socket => {
                self.socket = Some(socket(value)?);
                return Ok(());
            }
            Parameter::TlsCertificates => tls.with_certificates(value)?,
            Parameter::TlsHostname => tls.with_hostname(hostname(value)?),
            Parameter::TlsPskFile => tls.with_psk_file(value)?,
            Parameter::TlsType => tls.with_kind(tls_type(value)?),
            Parameter::TlsVerifyPeer => tls.with_verify_peer(verify_peer(value)?),
        };
        Ok(())
    }

    /// The server, if a parameter names it, and the proofs that TLS must give, if it is required.
    pub(super) fn finish(self) -> (Option<Address>, Option<Tls>) {
        (self.socket, self.requires_tls.then_some(self.tls))
    }
}

fn hostname(value: &[u8]) -> Result<Host, ValueError> {
    let name = str::from_utf8(value).map_err(|e| ValueError::NotUtf8 {
        offset: e.valid_up_to(),
    })?;
    Host::new(name)
}

fn socket(value: &[u8]) -> Result<Address, ValueError> {
    match value {
        [0, name @ ..] => Address::abstract_socket(name),
        path => Address::unix(path),
    }
}

fn tls_type(value: &[u8]) -> Result<TlsType, ValueError> {
    [TlsType::Anon, TlsType::Psk, TlsType::X509]
        .into_iter()
        .find(|kind| kind.as_str().as_bytes() == value)
        .ok_or_else(|| ValueError::TlsType { got: lossy(value) })
}

fn verify_peer(value: &[u8]) -> Result<bool, ValueError> {
    match value {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(ValueError::VerifyPeer { got: lossy(value) }),
    }
}

fn lossy(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parameter {
    Socket,
    TlsCertificates,
    TlsHostname,
    TlsPskFile,
    TlsType,
    TlsVerifyPeer,
}

impl Parameter {
    fn named(name: &[u8]) -> Option<Self> {
        [
            Self::Socket,
            Self::TlsCertificates,
            Self::TlsHostname,
            Self::TlsPskFile,
            Self::TlsType,
            Self::TlsVerifyPeer,
        ]
        .into_iter()
        .find(|parameter| parameter.name().as_bytes() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::TlsCertificates => "tls-certificates",
            Self::TlsHostname => "tls-hostname",
            Self::TlsPskFile => "tls-psk-file",
            Self::TlsType => "tls-type",
            Self::TlsVerifyPeer => "tls-verify-peer",
        }
    }
}
