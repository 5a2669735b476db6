//! Every bound on what a peer can make this side remember, allocate or wait for.

/// How much of each thing a peer may send before the connection is given up.
///
/// All of them are checked before space is lent or memory is taken; an announced length is never
/// allocated ahead of its bytes. The defaults suit every known peer. None can be switched off.
///
/// ```
/// let limits = nbd_proto::Limits { payload: 64 << 20, ..Default::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Both roles: the longest payload of one request or chunk, in bytes, beside the chunk's
    /// fixed fields. The specification allows no refusal below 32 MiB (the default).
    pub payload: u32,

    /// Client: the longest data of an option reply of an unknown kind of information, which is
    /// read and thrown away, in bytes. Default 64 KiB.
    pub unknown_info: u32,
    /// Client: `NBD_REP_INFO` replies to one option. Default 64.
    pub infos: u32,
    /// Client: `NBD_REP_META_CONTEXT` replies to one option. Default 4096.
    pub meta_contexts: u32,
    /// Client: `NBD_REP_SERVER` replies to one option. Default 65 536.
    pub list_entries: u32,
    /// Client: data of all replies to one option together, in bytes. Default 16 MiB.
    pub option_replies: u64,
    /// Client: requests in flight; 0 counts as 1. Default 64.
    pub in_flight: u32,
    /// Client: extents in one chunk. Default 2^20.
    pub extents: u32,
    /// Client: separate ranges that one read's chunks may leave while they arrive. Default 65 536.
    pub read_ranges: u32,
    /// Client: error chunks in one reply. Default 1024.
    pub error_chunks: u32,
    /// Client: the longest payload of an unknown kind of error chunk, in bytes. Default 64 KiB.
    pub unknown_error: u32,

    /// Server: the longest data of an option that is looked at, in bytes; a longer option is
    /// answered with `NBD_REP_ERR_TOO_BIG`. Default 64 KiB.
    pub option_data: u32,
    /// Server: the longest data of an option that is read and thrown away, in bytes; a longer
    /// option ends the connection. Default 1 MiB.
    pub option_drain: u32,
    /// Server: queries in one meta context option. Default 256.
    pub meta_queries: u32,
    /// Server: kinds of information asked for in one option. Default 256.
    pub info_requests: u32,
    /// Server: options in one connection, beside eight for every export that was listed in it; a
    /// list that is asked for again counts as one for each of its exports. Default 256.
    pub options: u32,
    /// Server: requests accepted and not yet answered; 0 counts as 1. Default 16.
    pub accepted: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload: 32 << 20,
            unknown_info: 64 << 10,
            infos: 64,
            meta_contexts: 4096,
            list_entries: 65_536,
            option_replies: 16 << 20,
            in_flight: 64,
            extents: 1 << 20,
            read_ranges: 65_536,
            error_chunks: 1024,
            unknown_error: 64 << 10,
            option_data: 64 << 10,
            option_drain: 1 << 20,
            meta_queries: 256,
            info_requests: 256,
            options: 256,
            accepted: 16,
        }
    }
}
