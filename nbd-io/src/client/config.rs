//! Settings by which a client's connections are made and used, as plain data.

use super::{Observer, Reconnect};
#[cfg(feature = "tls")]
use crate::tls::ClientTls;
use nbd_proto::{
    ContextName, ExportName,
    client::{self, InfoSet},
};
use std::time::Duration;

/// Everything that [`ConnectOptions`](super::ConnectOptions) say, where the methods of the same names
/// explain it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The options to negotiate.
    pub negotiation: NegotiationConfig,
    /// Settings for reaching a server. Their timeout is that of connecting as a whole.
    pub dial: DialOptions,
    /// The part of that time for TLS and the negotiation.
    pub negotiation_timeout: Option<Duration>,
    /// Time limit of each request.
    pub request_timeout: Option<Duration>,
    /// Limit of payload of one connection in memory, in bytes, for clients that hold any.
    pub bytes_in_flight: u64,
    /// Number of connections that are wanted.
    pub connections: usize,
    /// Whether and how a lost connection is replaced.
    pub reconnect: Option<Reconnect>,
    /// Whether silence ends a connection. By default, if it is replaced then.
    pub lose_when_silent: Option<bool>,
    /// Receiver of events of the client.
    pub observer: Observer,
    /// Requests that take at least so long are reported.
    pub slow_request: Option<Duration>,
    /// Whether a URI may name files of this machine.
    pub local_files: bool,
    /// The trusted authorities, and the client's own certificate.
    #[cfg(feature = "tls")]
    pub tls: ClientTls,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            negotiation: NegotiationConfig::new(ExportName::default()),
            dial: DialOptions::default(),
            negotiation_timeout: Some(Duration::from_secs(30)),
            request_timeout: Some(Duration::from_secs(60)),
            bytes_in_flight: 128 << 20,
            connections: 1,
            reconnect: None,
            lose_when_silent: None,
            observer: Observer::default(),
            slow_request: None,
            local_files: false,
            #[cfg(feature = "tls")]
            tls: ClientTls::new(),
        }
    }
}

/// The options to negotiate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NegotiationConfig {
    /// The export to enter.
    pub export: ExportName,
    /// Whether to start TLS.
    pub tls: TlsPolicy,
    /// Meta contexts to select. Those that the server does not have are left out.
    pub contexts: Vec<ContextName>,
    /// Those of them without which the export is not entered.
    pub required_contexts: Vec<ContextName>,
    /// The information to ask for beside the export's size, flags and block sizes.
    pub infos: InfoSet,
    /// Whether to ask for structured replies. Without them no context can be selected.
    pub structured_replies: bool,
    /// Whether to ask for extended headers, which imply structured replies.
    pub extended_headers: bool,
    /// Limits and tolerance.
    pub protocol: client::Config,
}

impl NegotiationConfig {
    /// The export, with everything asked for that makes transmission better, without TLS and
    /// without contexts.
    #[must_use]
    pub fn new(export: ExportName) -> Self {
        Self {
            export,
            tls: TlsPolicy::Never,
            contexts: Vec::new(),
            required_contexts: Vec::new(),
            infos: InfoSet::ALL,
            structured_replies: true,
            extended_headers: true,
            protocol: client::Config::default(),
        }
    }
}

/// Whether a connection is encrypted.
///
/// Spec: [TLS support](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#tls-support).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// Never.
    #[default]
    Never,
    /// If the server can. A man in the middle can make it look as if it could not.
    IfOffered,
    /// Always: a server that cannot is an error, and nothing but the wish for TLS is sent in the
    /// clear.
    Always,
}

/// Settings for reaching a server.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DialOptions {
    /// Time limit, including the lookup of the host and attempts at all of its addresses. `None`
    /// waits as long as the system does.
    pub timeout: Option<Duration>,
    /// For how long a TCP connection may be quiet until the system asks whether the server is still
    /// there (`SO_KEEPALIVE`). One that does not answer for three times that time is lost. `None`
    /// does not ask.
    pub tcp_keepalive: Option<Duration>,
    /// Time for which the server's system may acknowledge no sent data over TCP, or answer no probe
    /// of `tcp_keepalive`, until the connection is lost (`TCP_USER_TIMEOUT`). `None` leaves that to
    /// the system, and then it may be a quarter of an hour.
    pub tcp_user_timeout: Option<Duration>,
}

impl Default for DialOptions {
    /// 30 s, a question after 30 s, and 90 s, which is more than a request may take by default.
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_secs(30)),
            tcp_keepalive: Some(Duration::from_secs(30)),
            tcp_user_timeout: Some(Duration::from_secs(90)),
        }
    }
}
