//! A server's offer to every client.

use super::Tls;
use crate::{server::Limits, wire::HandshakeFlags};

/// The offer of a server in negotiation, the same for every export.
///
/// ```
/// use nbd_proto::server::{Config, Tls};
///
/// let config = Config { tls: Tls::Selective, listing: false, ..Config::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Limits of a client's requests.
    pub limits: Limits,
    /// Whether a client that starts in the clear may start TLS. A server on which it must is made
    /// by [`Handshake::forced_tls`](super::Handshake::forced_tls), for which this counts as
    /// [`Tls::Selective`]. Default [`Tls::Off`].
    pub tls: Tls,
    /// Whether `NBD_OPT_STRUCTURED_REPLY` is granted. Default true.
    pub structured: bool,
    /// Whether `NBD_OPT_EXTENDED_HEADERS` is granted. Default true.
    pub extended: bool,
    /// Whether `NBD_OPT_LIST` is granted; otherwise a client has to know the names. Default true.
    pub listing: bool,
    /// Whether the greeting offers `NBD_FLAG_FIXED_NEWSTYLE`, without which a client has nothing
    /// but `NBD_OPT_EXPORT_NAME`. Default true.
    pub fixed_newstyle: bool,
    /// Whether the greeting offers `NBD_FLAG_NO_ZEROES`. Default true.
    pub no_zeroes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            tls: Tls::Off,
            structured: true,
            extended: true,
            listing: true,
            fixed_newstyle: true,
            no_zeroes: true,
        }
    }
}

impl Config {
    pub(super) const fn handshake_flags(&self) -> HandshakeFlags {
        let mut flags = HandshakeFlags::NONE;
        if self.fixed_newstyle {
            flags = flags.with(HandshakeFlags::FIXED_NEWSTYLE);
        }
        if self.no_zeroes {
            flags = flags.with(HandshakeFlags::NO_ZEROES);
        }
        flags
    }
}
