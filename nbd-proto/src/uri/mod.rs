//! The server and the export that a client wants, in one line of text.
//!
//! Spec: [NBD URI]. The form is
//!
//! ```text
//! scheme://[user@][host][:port]/[export][?parameter=value&...]
//! ```
//!
//! | scheme                      | server                               | TLS                     |
//! |-----------------------------|--------------------------------------|-------------------------|
//! | `nbd`, also `nbd+tcp`       | `host` and `port` over TCP           | the program's decision  |
//! | `nbds`                      | the same                             | required                |
//! | `nbd+unix`, `nbds+unix`     | the Unix domain socket of `socket=`  | as for `nbd` and `nbds` |
//! | `nbd+vsock`, `nbds+vsock`   | the CID in place of `host`, `port`   | as for `nbd` and `nbds` |
//!
//! | parameter                   | value                                                          |
//! |-----------------------------|----------------------------------------------------------------|
//! | `socket`                    | path of a Unix domain socket; `%00` first: an abstract name    |
//! | `tls-type`                  | `anon` (needs a permission), `psk` or `x509`                   |
//! | `tls-hostname`              | the name to verify in place of `host`                          |
//! | `tls-verify-peer`           | `0` or `1`, which is the default                               |
//! | `tls-certificates`          | directory of PEM files (needs a permission; libnbd's)          |
//! | `tls-psk-file`              | file of pre-shared keys (needs a permission; libnbd's)         |
//!
//! A URI is split first and each part is percent-decoded once, so `%2F`, `%3F` and `%26` are data
//! wherever they stand. `+` is a plus sign, `;` separates nothing, and an export is free text:
//! exactly one leading `/` is dropped and `..` means nothing. An unknown, repeated or misplaced
//! part is an error, because a misspelt `tls-hostname` must not pass in silence.
//!
//! ```
//! use nbd_proto::uri::{Address, Uri, UriError};
//!
//! let uri: Uri = "nbds://alice@example.com/disk%201".parse()?;
//! assert_eq!(uri.export().as_str(), "disk 1");
//! assert_eq!(uri.user(), Some("alice"));
//! assert!(uri.tls().is_some_and(|tls| tls.verify_peer()));
//! let Address::Tcp { host, port, .. } = uri.address() else { panic!("nbds is TCP") };
//! assert_eq!((host.as_str(), *port), ("example.com", 10809));
//!
//! let socket = Uri::unix("/run/nbd 1.sock")?.with_export("disk".try_into()?);
//! assert_eq!(socket.to_string(), "nbd+unix:///disk?socket=/run/nbd%201.sock");
//!
//! let misspelt = Uri::parse("nbd+unix:///disk?sokcet=/run/nbd.sock");
//! assert!(matches!(misspelt, Err(UriError::UnknownParameter { .. })));
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
//!
//! [NBD URI]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md

mod address;
mod display;
mod error;
mod parse;
mod piece;
mod qemu;
mod query;
mod tls;

use alloc::{borrow::ToOwned, string::String};
use core::{fmt, str};

use crate::ExportName;

pub use crate::wire::DEFAULT_PORT;

pub use self::{
    address::{Address, Host, MAX_SOCKET},
    error::{Part, UriError, ValueError},
    tls::{Tls, TlsType},
};

/// A server, how to reach it, and one of its exports.
///
/// Spec: [NBD URI]. A value is always legal, and [`fmt::Display`] writes it as a canonical URI
/// that parses back to the same value (given the [`Permissions`] its parameters need).
///
/// That URI is complete: it contains the user name. [`fmt::Debug`] and [`Uri::redacted`] hide it;
/// logs and error messages should use those.
///
/// [NBD URI]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    address: Address,
    user: Option<String>,
    export: ExportName,
    tls: Option<Tls>,
}

impl Uri {
    /// Parses a URI that may name neither local files nor anonymous TLS.
    ///
    /// [`str::FromStr`] does the same.
    ///
    /// # Errors
    ///
    /// [`UriError`] names the expected text and its place.
    pub fn parse(uri: &str) -> Result<Self, UriError> {
        Self::parse_with(uri, Permissions::default())
    }

    /// Parses a URI from a source trusted as far as `permissions` say.
    ///
    /// # Errors
    ///
    /// [`UriError`] names the expected text and its place.
    pub fn parse_with(uri: &str, permissions: Permissions) -> Result<Self, UriError> {
        parse::parse(uri, permissions)
    }

    /// Parses the syntax that QEMU took before it took URIs, and still does: `nbd:HOST:PORT` or
    /// `nbd:unix:PATH`, each perhaps with `:exportname=NAME` after it.
    ///
    /// ```
    /// # use nbd_proto::uri::Uri;
    /// let uri = Uri::parse_qemu("nbd:localhost:10809:exportname=disk")?;
    /// assert_eq!(uri, Uri::parse("nbd://localhost/disk")?);
    /// # Ok::<(), nbd_proto::uri::UriError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`UriError`] names the expected text and its place.
    pub fn parse_qemu(text: &str) -> Result<Self, UriError> {
        qemu::parse(text)
    }

    /// The default export of the server at `host` and `port` ([`DEFAULT_PORT`] as a rule), without
    /// a demand for TLS.
    ///
    /// # Errors
    ///
    /// When `host` is no [`Host`] or `port` is 0.
    pub fn tcp(host: &str, port: u16) -> Result<Self, ValueError> {
        Address::tcp(Host::new(host)?, port).map(Self::new)
    }

    /// The default export of the server behind the Unix domain socket at `path`, without a demand
    /// for TLS.
    ///
    /// # Errors
    ///
    /// When `path` is empty, contains NUL, or is longer than [`MAX_SOCKET`].
    pub fn unix(path: impl AsRef<[u8]>) -> Result<Self, ValueError> {
        Address::unix(path.as_ref()).map(Self::new)
    }

    /// The default export of the server behind the socket `name` in Linux's abstract namespace,
    /// without a demand for TLS.
    ///
    /// # Errors
    ///
    /// When `name`, given without its leading NUL, is empty, contains NUL, or is longer than
    /// [`MAX_SOCKET`].
    pub fn abstract_socket(name: impl AsRef<[u8]>) -> Result<Self, ValueError> {
        Address::abstract_socket(name.as_ref()).map(Self::new)
    }

    /// The default export of the server at `port` of the virtual machine, or the host, that `cid`
    /// names, without a demand for TLS.
    ///
    /// # Errors
    ///
    /// When `cid` or `port` is the wildcard `u32::MAX`, or `port` is 0.
    pub fn vsock(cid: u32, port: u32) -> Result<Self, ValueError> {
        Address::vsock(cid, port).map(Self::new)
    }

    fn new(address: Address) -> Self {
        Self {
            address,
            user: None,
            export: ExportName::default(),
            tls: None,
        }
    }

    /// The same server's export `name`.
    #[must_use]
    pub fn with_export(self, name: ExportName) -> Self {
        Self {
            export: name,
            ..self
        }
    }

    /// The same, requiring TLS.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        Self {
            tls: Some(tls),
            ..self
        }
    }

    /// The same, for the TLS user `name`.
    ///
    /// # Errors
    ///
    /// When `name` is empty or contains NUL.
    pub fn with_user(self, name: &str) -> Result<Self, ValueError> {
        error::check_bytes(name.as_bytes())?;
        Ok(Self {
            user: Some(name.to_owned()),
            ..self
        })
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The export that is wanted; the empty name is the server's default.
    #[must_use]
    pub fn export(&self) -> &ExportName {
        &self.export
    }

    /// The demands on TLS, if the URI requires TLS.
    ///
    /// With a value here (`nbds`) the connection MUST be encrypted or fail. Without one (`nbd`) it
    /// may be plaintext, and whether TLS is tried is the program's decision.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The user name for TLS, which is the identity of a pre-shared key.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// This URI for logs: as [`fmt::Display`] writes it, with `***` in place of the user name.
    #[must_use]
    pub fn redacted(&self) -> impl fmt::Display {
        display::Redacted(self)
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uri({})", self.redacted())
    }
}

impl str::FromStr for Uri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        Self::parse(uri)
    }
}

impl TryFrom<&str> for Uri {
    type Error = UriError;

    fn try_from(uri: &str) -> Result<Self, UriError> {
        Self::parse(uri)
    }
}

/// The permissions of a URI to make the program do things beyond connecting to a server; nothing
/// by default.
///
/// A URI often comes from elsewhere: an argument, a configuration, a web page. Grant these only
/// to a source that may choose files to be read on this machine, or may waive authentication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    local_files: bool,
    anonymous_tls: bool,
}

impl Permissions {
    /// Also permits `tls-certificates` and `tls-psk-file`, which name local files to be read.
    #[must_use]
    pub fn local_files(self) -> Self {
        Self {
            local_files: true,
            ..self
        }
    }

    /// Also permits `tls-type=anon`: encryption that an attacker in between can undo.
    #[must_use]
    pub fn anonymous_tls(self) -> Self {
        Self {
            anonymous_tls: true,
            ..self
        }
    }
}

#[cfg(test)]
mod tests;
