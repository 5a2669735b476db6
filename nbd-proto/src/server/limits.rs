//! Limits of the memory, the allocations and the time that a client can cost a server.

/// Limits of a client's messages, beyond which it is refused or the connection is given up.
///
/// All of them are checked before space is lent or memory is taken; an announced length is never
/// allocated ahead of its bytes. The defaults suit every known client. None can be switched off.
///
/// ```
/// use nbd_proto::server::Limits;
///
/// let limits = Limits { payload: 64 << 20, ..Limits::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest payload of one request or chunk, in bytes. The specification allows no refusal
    /// below 32 MiB (the default).
    pub payload: u32,
    /// Requests accepted and not yet answered; 0 counts as 1. Default 16.
    pub accepted: u32,
    /// The longest data of an option that is looked at, in bytes; a longer option is answered with
    /// `NBD_REP_ERR_TOO_BIG`. Default 64 KiB.
    pub option_data: u32,
    /// The longest data of an option that is read and thrown away, in bytes; a longer option ends the
    /// connection. Default 1 MiB.
    pub option_drain: u32,
    /// Queries in one meta context option. Default 256.
    pub meta_queries: u32,
    /// Kinds of information asked for in one option. Default 256.
    pub info_requests: u32,
    /// Options in one connection, beside eight for every export that was listed in it; a list that is
    /// asked for again counts as one for each of its exports. Default 256.
    pub options: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload: 32 << 20,
            accepted: 16,
            option_data: 64 << 10,
            option_drain: 1 << 20,
            meta_queries: 256,
            info_requests: 256,
            options: 256,
        }
    }
}
