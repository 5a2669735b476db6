//! One error type per question: did the peer break the protocol ([`Error`]), was a request of the
//! caller's never sent ([`Misuse`]), did the server refuse an option ([`OptionError`]) or fail a
//! command ([`Failure`])?

mod misuse;
mod refusals;

pub use misuse::Misuse;
pub use refusals::{Failure, OptionError};

use crate::wire::{Command, OptionCode, OptionReplyCode, ReplyType};

/// The peer broke the protocol, and the connection is over.
///
/// A phase that returns it is consumed; transmission remembers it and returns it from every later
/// call. The right reaction is to close the transport without sending another byte of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Greeting.
    /// The peer is not an NBD server.
    #[error("expected an NBD server to start with \"NBDMAGIC\", got \"{}\"", got.to_be_bytes().escape_ascii())]
    NotNbd {
        /// The first eight bytes.
        got: u64,
    },
    /// The greeting is neither newstyle nor oldstyle.
    #[error("expected the magic number of a newstyle or an oldstyle server, got {got:#018x}")]
    UnknownStyle {
        /// The second magic number.
        got: u64,
    },
    /// An oldstyle server set handshake flags.
    #[error("an oldstyle server must not set handshake flags, got {flags:#010x}")]
    OldstyleFlags {
        /// All 32 bits of flags.
        flags: u32,
    },
    /// TLS is required and this server cannot start it, because it does not speak fixed newstyle.
    #[error("TLS is required, but the server does not speak fixed newstyle, which TLS needs")]
    TlsImpossible,
    /// The client set flags that were not offered.
    #[error("the client set flags {got:#x} where {offered:#x} were offered")]
    ClientFlags {
        /// The client's value.
        got: u32,
        /// The values that it could have sent.
        offered: u32,
    },

    // Negotiation.
    /// An option does not start with its magic number.
    #[error("expected the magic number of an option, got {got:#018x}")]
    OptionMagic {
        /// The actual value.
        got: u64,
    },
    /// An option other than `NBD_OPT_EXPORT_NAME` without fixed newstyle.
    #[error("{option} needs fixed newstyle, which the client did not take up")]
    OptionNeedsFixedNewstyle {
        /// The option.
        option: OptionCode,
    },
    /// An option is too long even to be skipped.
    #[error("{option} announces {len} bytes of data, more than the {limit} that are skipped")]
    OptionTooLong {
        /// The option.
        option: OptionCode,
        /// Its announced length in bytes.
        len: u32,
        /// The limit in bytes.
        limit: u32,
    },
    /// The client sent more options than it may.
    #[error("the client sent more than {limit} options")]
    TooManyOptions {
        /// The limit.
        limit: u32,
    },
    /// `NBD_OPT_EXPORT_NAME` could not be granted, and has no other way to be refused.
    #[error("NBD_OPT_EXPORT_NAME was refused: {why}")]
    ExportNameRefused {
        /// The reason.
        why: &'static str,
    },
    /// An option reply does not start with its magic number.
    #[error("expected the magic number of an option reply, got {got:#018x}")]
    OptionReplyMagic {
        /// The actual value.
        got: u64,
    },
    /// A reply to another option than the outstanding one.
    #[error("expected a reply to {expected}, got one to {got}")]
    WrongOption {
        /// The outstanding option.
        expected: OptionCode,
        /// The option in the reply.
        got: OptionCode,
    },
    /// A reply that the option cannot have.
    #[error("{reply} is no reply to {option}")]
    UnexpectedOptionReply {
        /// The outstanding option.
        option: OptionCode,
        /// The reply.
        reply: OptionReplyCode,
    },
    /// The data of an option reply is longer than it can be.
    #[error("{reply} to {option} announces {len} bytes of data, at most {limit} are possible")]
    OptionReplyTooLong {
        /// The outstanding option.
        option: OptionCode,
        /// The reply.
        reply: OptionReplyCode,
        /// Its announced length in bytes.
        len: u32,
        /// The limit in bytes.
        limit: u32,
    },
    /// The data of an option reply does not have the layout that its type calls for.
    #[error("{reply} to {option} has {len} bytes of data that do not fit its layout")]
    MalformedOptionReply {
        /// The outstanding option.
        option: OptionCode,
        /// The reply.
        reply: OptionReplyCode,
        /// The length of its data in bytes.
        len: u32,
    },
    /// More replies to one option than the limits allow.
    #[error("more than {limit} {reply} replies to {option}")]
    TooManyOptionReplies {
        /// The outstanding option.
        option: OptionCode,
        /// The reply.
        reply: OptionReplyCode,
        /// The limit.
        limit: u32,
    },
    /// The replies to one option are together longer than the limits allow.
    #[error("the replies to {option} have more than {limit} bytes together")]
    OptionRepliesTooLong {
        /// The outstanding option.
        option: OptionCode,
        /// The limit in bytes.
        limit: u64,
    },
    /// More came behind the last reply to an option, without another option.
    #[error("the server went on after its last reply to {option}")]
    AfterLastReply {
        /// The option.
        option: OptionCode,
    },
    /// An export was granted without telling its size.
    #[error("the server acknowledged {option} without NBD_INFO_EXPORT")]
    NoExportInfo {
        /// `NBD_OPT_INFO` or `NBD_OPT_GO`.
        option: OptionCode,
    },
    /// An export's transmission flags lack the one that is always set.
    #[error("the transmission flags {flags:#06x} lack NBD_FLAG_HAS_FLAGS")]
    NoFlags {
        /// The flags.
        flags: u16,
    },
    /// Block sizes that contradict the specification or each other.
    #[error(
        "block sizes {minimum}, {preferred}, {maximum} are not a minimum of 1 to 65536, a \
         preferred size of at least 512 and the minimum (both powers of two), and a maximum of \
         at least the preferred size"
    )]
    BlockSizes {
        /// The minimum in bytes.
        minimum: u32,
        /// The preferred size in bytes.
        preferred: u32,
        /// The maximum payload in bytes.
        maximum: u32,
    },
    /// Two selected contexts share an id or a name.
    #[error("the server selected two meta contexts with id {id}, or one context twice")]
    DuplicateContext {
        /// The id that came second.
        id: u32,
    },

    // Requests.
    /// A request does not start with the magic number of the agreed layout.
    #[error("expected a request to start with {expected:#010x}, got {got:#010x}")]
    RequestMagic {
        /// The magic number of this connection's requests.
        expected: u32,
        /// The actual value.
        got: u32,
    },
    /// A payload that is too long to be skipped.
    #[error("{command} announces a payload of {len} bytes, more than the limit of {limit}")]
    PayloadTooLong {
        /// The command.
        command: Command,
        /// The announced length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u32,
    },

    // Replies.
    /// A reply does not start with a magic number of the agreed layout.
    #[error("{got:#010x} cannot start a reply on this connection")]
    ReplyMagic {
        /// The actual value.
        got: u32,
    },
    /// A reply to a request that is not in flight.
    #[error("a reply has cookie {cookie:#x}, which no request in flight has")]
    UnknownCookie {
        /// The cookie.
        cookie: u64,
    },
    /// A simple reply that says a command succeeded which needs chunks to say so.
    #[error("{command} was answered by a simple reply without an error, where chunks were agreed")]
    SimpleSuccess {
        /// The command.
        command: Command,
    },
    /// A simple reply with an error to a read, where chunks were agreed.
    #[error("NBD_CMD_READ was answered by a simple reply, where chunks were agreed")]
    SimpleError,
    /// A chunk of a type that the command cannot have, or that is unknown.
    #[error("a chunk of type {reply} is no reply to {command}")]
    UnexpectedChunk {
        /// The command.
        command: Command,
        /// The chunk's type.
        reply: ReplyType,
    },
    /// A chunk whose length does not fit its type or its request.
    #[error("a chunk of type {reply} has a payload of {len} bytes, which does not fit its layout")]
    ChunkLength {
        /// The chunk's type.
        reply: ReplyType,
        /// The length of its payload in bytes.
        len: u64,
    },
    /// A `NONE` chunk that is not the last one.
    #[error("NBD_REPLY_TYPE_NONE came without NBD_REPLY_FLAG_DONE")]
    NoneNotDone,
    /// A chunk is longer than the limits, or in strict mode the server's own maximum, allow.
    #[error("a chunk of type {reply} has a payload of {len} bytes, more than the limit of {limit}")]
    ChunkTooLong {
        /// The chunk's type.
        reply: ReplyType,
        /// The length of its payload in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An extended chunk that echoes another offset than its request's.
    #[error("a chunk echoes offset {got}, its request has {expected}")]
    WrongOffset {
        /// The offset of the request.
        expected: u64,
        /// The offset in the chunk.
        got: u64,
    },
    /// Data, a hole or an error at a place that was not asked for.
    #[error("a chunk at {offset} of {len} bytes lies outside its request")]
    OutsideRequest {
        /// Offset of its start in bytes.
        offset: u64,
        /// Its length in bytes; 0 for the place of an error.
        len: u64,
    },
    /// Data or a hole at a place that was answered before.
    #[error("a chunk at {offset} of {len} bytes overlaps bytes that were answered before")]
    Overlap {
        /// Offset of its start in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A hole of no bytes.
    #[error("a hole at {offset} has no length")]
    EmptyHole {
        /// Offset of its start in bytes.
        offset: u64,
    },
    /// A successful read that left bytes unanswered.
    #[error("a read of {len} bytes ended successfully with {missing} of them missing")]
    ShortRead {
        /// The length of the read in bytes.
        len: u64,
        /// Number of bytes that never came.
        missing: u64,
    },
    /// A read that was to be answered in one piece was not.
    #[error("a read with NBD_CMD_FLAG_DF was answered in more than one piece")]
    Fragmented,
    /// A read's chunks arrive in more separate ranges than the limits allow.
    #[error("the chunks of a read leave more than {limit} separate ranges")]
    TooManyRanges {
        /// The limit.
        limit: u32,
    },
    /// A reply with more error chunks than the limits allow.
    #[error("a reply has more than {limit} error chunks")]
    TooManyErrors {
        /// The limit.
        limit: u32,
    },
    /// An error chunk with the number of success.
    #[error("an error chunk has error number 0")]
    ErrorZero,
    /// Extents of a context that was not selected.
    #[error("extents of meta context {id}, which was not asked for")]
    UnknownContext {
        /// The context's id.
        id: u32,
    },
    /// Two chunks of extents of one context.
    #[error("two chunks of extents of meta context {id}")]
    ContextTwice {
        /// The context's id.
        id: u32,
    },
    /// A successful block status that says nothing of a selected context.
    #[error("block status ended successfully without extents of meta context {id}")]
    MissingContext {
        /// The context's id.
        id: u32,
    },
    /// An extent of no bytes.
    #[error("an extent has no length")]
    EmptyExtent,
    /// Extents that go on after the end of the request, or more than one where one was wanted.
    #[error("extents go on behind the end of their request, or there are more than asked for")]
    SurplusExtents,
    /// A count of extents that is not the number of extents.
    #[error("a chunk announces {announced} extents and has {got}")]
    ExtentCount {
        /// The count in the chunk.
        announced: u32,
        /// The number that fits its length.
        got: u64,
    },
}

impl Error {
    /// The rule that the peer broke, by its number in this project's conformance table.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        self.blame().0
    }

    /// The heading of the specification where the rule stands.
    #[must_use]
    pub const fn section(&self) -> &'static str {
        self.blame().1
    }

    const fn blame(&self) -> (&'static str, &'static str) {
        const NEGOTIATION: &str = "Fixed newstyle negotiation";
        const OPTION_REPLIES: &str = "Option reply types";
        const STRUCTURED: &str = "Structured reply types";
        const REPLY: &str = "Structured reply chunk message";
        match self {
            Self::NotNbd { .. } => ("C-006", "Handshake"),
            Self::UnknownStyle { .. } => ("C-007", "Handshake"),
            Self::OldstyleFlags { .. } => ("C-010", "Oldstyle negotiation"),
            Self::TlsImpossible => ("C-018", "Client-side requirements"),
            Self::ClientFlags { .. } => ("S-009", "Client flags"),
            Self::OptionMagic { .. } => ("S-015", NEGOTIATION),
            Self::OptionNeedsFixedNewstyle { .. } => ("S-029", NEGOTIATION),
            Self::OptionTooLong { .. } => ("B-003", NEGOTIATION),
            Self::TooManyOptions { .. } => ("B-006", NEGOTIATION),
            Self::ExportNameRefused { .. } => ("S-085", "Option types"),
            Self::OptionReplyMagic { .. } => ("C-024", NEGOTIATION),
            Self::WrongOption { .. } => ("C-025", NEGOTIATION),
            Self::UnexpectedOptionReply { reply, .. } => match reply {
                OptionReplyCode::Other(_) => ("C-029", OPTION_REPLIES),
                _ => ("C-028", OPTION_REPLIES),
            },
            Self::OptionReplyTooLong { reply, .. } => match reply {
                OptionReplyCode::Ack => ("C-027", OPTION_REPLIES),
                _ => ("B-009", OPTION_REPLIES),
            },
            Self::MalformedOptionReply { reply, .. } => match reply {
                OptionReplyCode::Info => ("C-089", OPTION_REPLIES),
                OptionReplyCode::MetaContext => ("C-161", OPTION_REPLIES),
                _ => ("C-104", OPTION_REPLIES),
            },
            Self::TooManyOptionReplies { .. } | Self::OptionRepliesTooLong { .. } => {
                ("B-010", OPTION_REPLIES)
            }
            Self::AfterLastReply { .. } => ("C-026", NEGOTIATION),
            Self::NoExportInfo { .. } => ("C-086", OPTION_REPLIES),
            Self::NoFlags { .. } => ("C-108", "Transmission flags"),
            Self::BlockSizes { .. } => ("C-118", "Size constraints"),
            Self::DuplicateContext { .. } => ("C-162", "Metadata querying"),
            Self::RequestMagic { .. } => ("S-142", "Request message"),
            Self::PayloadTooLong { .. } => ("S-146", "Size constraints"),
            Self::ReplyMagic { .. } => ("C-196", "Simple reply message"),
            Self::UnknownCookie { .. } => ("C-204", "Ordering of messages and writes"),
            Self::SimpleSuccess { command } => match command {
                Command::BlockStatus => ("C-202", REPLY),
                _ => ("C-200", REPLY),
            },
            Self::SimpleError => ("C-200", REPLY),
            Self::UnexpectedChunk { command, reply } => match (command, reply) {
                (_, ReplyType::Other(_)) => ("C-211", STRUCTURED),
                (Command::BlockStatus, ReplyType::BlockStatus | ReplyType::BlockStatusExt) => {
                    ("C-240", STRUCTURED)
                }
                _ => ("C-212", STRUCTURED),
            },
            Self::ChunkLength { reply, .. } => match reply {
                ReplyType::None => ("C-210", STRUCTURED),
                ReplyType::OffsetData => ("C-224", STRUCTURED),
                ReplyType::OffsetHole => ("C-227", STRUCTURED),
                ReplyType::BlockStatus => ("C-238", STRUCTURED),
                ReplyType::BlockStatusExt => ("C-239", STRUCTURED),
                ReplyType::Error | ReplyType::ErrorOffset | ReplyType::Other(_) => {
                    ("C-214", STRUCTURED)
                }
            },
            Self::NoneNotDone => ("C-210", STRUCTURED),
            Self::ChunkTooLong { reply, .. } if reply.is_error() => ("B-017", STRUCTURED),
            Self::ChunkTooLong { .. } => ("C-234", "Size constraints"),
            Self::WrongOffset { .. } => ("C-257", "Extended reply chunk message"),
            // Data and holes are never empty: this is the place of an error.
            Self::OutsideRequest { len: 0, .. } => ("C-217", STRUCTURED),
            Self::OutsideRequest { .. } => ("C-225", "Request types"),
            Self::Overlap { .. } => ("C-226", "Request types"),
            Self::EmptyHole { .. } => ("C-227", STRUCTURED),
            Self::ShortRead { .. } => ("C-230", "Request types"),
            Self::Fragmented => ("C-231", "Command flags"),
            Self::TooManyRanges { .. } => ("B-015", "Request types"),
            Self::TooManyErrors { .. } => ("B-016", STRUCTURED),
            Self::ErrorZero => ("C-215", STRUCTURED),
            Self::UnknownContext { .. } => ("C-241", STRUCTURED),
            Self::ContextTwice { .. } | Self::MissingContext { .. } => ("C-242", STRUCTURED),
            Self::EmptyExtent => ("C-243", STRUCTURED),
            Self::SurplusExtents => ("C-245", STRUCTURED),
            Self::ExtentCount { .. } => ("C-239", STRUCTURED),
        }
    }
}
