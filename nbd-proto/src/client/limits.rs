//! Limits of the memory, the allocations and the time that a server can cost a client.

/// Limits of a server's messages, beyond which the connection is given up.
///
/// All of them are checked before space is lent or memory is taken; an announced length is never
/// allocated ahead of its bytes. The defaults suit every known server. None can be switched off.
///
/// ```
/// use nbd_proto::client::Limits;
///
/// let limits = Limits { payload: 64 << 20, ..Limits::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest payload of one request or chunk, in bytes, beside the chunk's fixed fields. The
    /// specification allows no refusal below 32 MiB (the default).
    pub payload: u32,
    /// Requests in flight; 0 counts as 1. Default 64.
    pub in_flight: u32,
    /// The longest data of an option reply of an unknown kind of information, which is read and
    /// thrown away, in bytes. Default 64 KiB.
    pub unknown_info: u32,
    /// `NBD_REP_INFO` replies to one option. Default 64.
    pub infos: u32,
    /// `NBD_REP_META_CONTEXT` replies to one option. Default 4096.
    pub meta_contexts: u32,
    /// `NBD_REP_SERVER` replies to one option. Default 65 536.
    pub list_entries: u32,
    /// Data of all replies to one option together, in bytes. Default 16 MiB.
    pub option_replies: u64,
    /// Extents in one chunk. Default 2^20.
    pub extents: u32,
    /// Separate ranges that one read's chunks may leave while they arrive. Default 65 536.
    pub read_ranges: u32,
    /// Error chunks in one reply. Default 1024.
    pub error_chunks: u32,
    /// The longest payload of an unknown kind of error chunk, in bytes. Default 64 KiB.
    pub unknown_error: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload: 32 << 20,
            in_flight: 64,
            unknown_info: 64 << 10,
            infos: 64,
            meta_contexts: 4096,
            list_entries: 65_536,
            option_replies: 16 << 20,
            extents: 1 << 20,
            read_ranges: 65_536,
            error_chunks: 1024,
            unknown_error: 64 << 10,
        }
    }
}
