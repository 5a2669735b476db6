//! The layout of every message, once, for both roles.
//!
//! Spec: [the protocol](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). All
//! integers are unsigned and big-endian; nothing is padded or aligned. Most programs never need
//! this module: the phases of [`client`](crate::client) and [`server`](crate::server) read and
//! write these messages. It is public for tools that look at traffic and for tests of other
//! implementations.

mod codes;
mod flags;
mod handshake;
mod transmission;

pub use codes::{Command, Errno, InfoType, OptionCode, OptionReplyCode, ReplyType};
pub use flags::{ClientFlags, CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags};
pub use handshake::{
    ExportBlock, GREETING_LEN, Greeting, Info, InfoRequest, MetaContextReply, MetaContextRequest,
    MetaQueries, OLDSTYLE_REST, OptionReplyHeader, OptionRequestHeader, ServerReply,
    WireBlockSizes, ZEROES,
};
pub(crate) use handshake::{put_option, put_option_reply};
pub use transmission::{
    BlockStatusFilter, ChunkHeader, Descriptor, ErrorChunk, HeaderStyle, MAX_HEADER, ReplyHeader,
    RequestHeader,
};

/// The magic numbers that open messages.
pub mod magic {
    /// `NBDMAGIC`, the first eight bytes of every server.
    pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
    /// `cliserv_magic`: the server speaks oldstyle.
    pub const CLISERV: u64 = 0x0000_4202_8186_1253;
    /// `IHAVEOPT`: the server speaks newstyle; also opens every option of a client.
    pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
    /// Opens every option reply.
    pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
    /// `NBD_REQUEST_MAGIC`: a compact request.
    pub const REQUEST: u32 = 0x2560_9513;
    /// `NBD_EXTENDED_REQUEST_MAGIC`.
    pub const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
    /// `NBD_SIMPLE_REPLY_MAGIC`.
    pub const SIMPLE_REPLY: u32 = 0x6744_6698;
    /// `NBD_STRUCTURED_REPLY_MAGIC`.
    pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
    /// `NBD_EXTENDED_REPLY_MAGIC`.
    pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;
}

/// The port that IANA assigned to NBD.
pub const DEFAULT_PORT: u16 = 10809;

/// Reads fields off the front of a slice; `None` when it is too short.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    #[inline]
    pub(crate) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string of a 32-bit length in front of it.
    pub(crate) fn counted(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.bytes(len)
    }
}
