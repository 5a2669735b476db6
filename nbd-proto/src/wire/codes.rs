//! Numbers that name things on the wire. A number that this crate does not know is kept as it
//! came, so that decoding never fails and encoding gives back the same number.

/// Defines an enum over a wire integer, with the specification's names.
macro_rules! codes {
    (
        $(#[$doc:meta])*
        pub enum $name:ident($repr:ty) {
            $($(#[$variant_doc:meta])* $variant:ident = $value:literal, $spec:literal;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $(
                #[doc = concat!("`", $spec, "`.")]
                $(#[$variant_doc])*
                $variant,
            )*
            /// A number without a name here.
            Other($repr),
        }

        impl $name {
            /// Every named code, in the specification's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number on the wire.
            #[inline]
            #[must_use]
            pub const fn code(self) -> $repr {
                match self {
                    $(Self::$variant => $value,)*
                    Self::Other(code) => code,
                }
            }
        }

        impl From<$repr> for $name {
            #[inline]
            fn from(code: $repr) -> Self {
                match code {
                    $($value => Self::$variant,)*
                    code => Self::Other(code),
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($spec),)*
                    Self::Other(code) => write!(f, "{} {code:#x}", Self::KIND),
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }
    };
}

codes! {
    /// A request of a client in negotiation.
    ///
    /// Spec: [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
    pub enum OptionCode(u32) {
        /// Enters transmission; the only option without an option reply.
        ExportName = 1, "NBD_OPT_EXPORT_NAME";
        Abort = 2, "NBD_OPT_ABORT";
        List = 3, "NBD_OPT_LIST";
        /// Withdrawn from the specification; answered like an unknown option.
        PeekExport = 4, "NBD_OPT_PEEK_EXPORT";
        StartTls = 5, "NBD_OPT_STARTTLS";
        Info = 6, "NBD_OPT_INFO";
        Go = 7, "NBD_OPT_GO";
        StructuredReply = 8, "NBD_OPT_STRUCTURED_REPLY";
        ListMetaContext = 9, "NBD_OPT_LIST_META_CONTEXT";
        SetMetaContext = 10, "NBD_OPT_SET_META_CONTEXT";
        ExtendedHeaders = 11, "NBD_OPT_EXTENDED_HEADERS";
    }
}
impl OptionCode {
    const KIND: &'static str = "option";
}

codes! {
    /// A server's kind of answer to an option.
    ///
    /// Spec: [Option reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-reply-types).
    pub enum OptionReplyCode(u32) {
        Ack = 1, "NBD_REP_ACK";
        Server = 2, "NBD_REP_SERVER";
        Info = 3, "NBD_REP_INFO";
        MetaContext = 4, "NBD_REP_META_CONTEXT";
        /// The option is not implemented.
        ErrUnsup = 0x8000_0001, "NBD_REP_ERR_UNSUP";
        /// Known and valid, but forbidden by configuration.
        ErrPolicy = 0x8000_0002, "NBD_REP_ERR_POLICY";
        /// Malformed, or in the wrong state.
        ErrInvalid = 0x8000_0003, "NBD_REP_ERR_INVALID";
        /// Not available in this build or on this platform.
        ErrPlatform = 0x8000_0004, "NBD_REP_ERR_PLATFORM";
        /// TLS has to be started first.
        ErrTlsReqd = 0x8000_0005, "NBD_REP_ERR_TLS_REQD";
        /// The export is not available.
        ErrUnknown = 0x8000_0006, "NBD_REP_ERR_UNKNOWN";
        /// The server is going away.
        ErrShutdown = 0x8000_0007, "NBD_REP_ERR_SHUTDOWN";
        /// The client has to ask for block sizes.
        ErrBlockSizeReqd = 0x8000_0008, "NBD_REP_ERR_BLOCK_SIZE_REQD";
        /// The request or its reply is too large.
        ErrTooBig = 0x8000_0009, "NBD_REP_ERR_TOO_BIG";
        /// Extended headers are needed (or cannot be given up).
        ErrExtHeaderReqd = 0x8000_000a, "NBD_REP_ERR_EXT_HEADER_REQD";
    }
}
impl OptionReplyCode {
    const KIND: &'static str = "option reply";

    /// Whether this ends the option with a refusal.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.code() & 0x8000_0000 != 0
    }
}

codes! {
    /// A piece of information about an export.
    ///
    /// Spec: [NBD_INFO](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-reply-types).
    pub enum InfoType(u16) {
        /// Size and transmission flags; always sent.
        Export = 0, "NBD_INFO_EXPORT";
        /// The canonical name.
        Name = 1, "NBD_INFO_NAME";
        Description = 2, "NBD_INFO_DESCRIPTION";
        BlockSize = 3, "NBD_INFO_BLOCK_SIZE";
    }
}
impl InfoType {
    const KIND: &'static str = "information";
}

codes! {
    /// A request of a client during transmission.
    ///
    /// Spec: [Request types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#request-types).
    pub enum Command(u16) {
        Read = 0, "NBD_CMD_READ";
        Write = 1, "NBD_CMD_WRITE";
        /// Has no reply.
        Disc = 2, "NBD_CMD_DISC";
        Flush = 3, "NBD_CMD_FLUSH";
        Trim = 4, "NBD_CMD_TRIM";
        Cache = 5, "NBD_CMD_CACHE";
        WriteZeroes = 6, "NBD_CMD_WRITE_ZEROES";
        BlockStatus = 7, "NBD_CMD_BLOCK_STATUS";
        /// An experimental draft; this crate names it but never sends or serves it.
        Resize = 8, "NBD_CMD_RESIZE";
    }
}
impl Command {
    const KIND: &'static str = "command";
}

codes! {
    /// The kind of a chunk of a structured or extended reply.
    ///
    /// Spec: [Structured reply types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#structured-reply-types).
    pub enum ReplyType(u16) {
        None = 0, "NBD_REPLY_TYPE_NONE";
        OffsetData = 1, "NBD_REPLY_TYPE_OFFSET_DATA";
        OffsetHole = 2, "NBD_REPLY_TYPE_OFFSET_HOLE";
        /// Extents of 32 bits, with structured replies.
        BlockStatus = 5, "NBD_REPLY_TYPE_BLOCK_STATUS";
        /// Extents of 64 bits, with extended headers.
        BlockStatusExt = 6, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT";
        Error = 0x8001, "NBD_REPLY_TYPE_ERROR";
        ErrorOffset = 0x8002, "NBD_REPLY_TYPE_ERROR_OFFSET";
    }
}
impl ReplyType {
    const KIND: &'static str = "number";

    /// Whether a reply with such a chunk has failed.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.code() & 0x8000 != 0
    }
}

codes! {
    /// The error for which a server could not carry out a command.
    ///
    /// Spec: [Error values](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#error-values).
    /// A number outside the list is kept, and is to be treated like [`Errno::Inval`]
    /// ([`Errno::normalized`]).
    pub enum Errno(u32) {
        /// Operation not permitted; a write to a read-only export.
        Perm = 1, "NBD_EPERM";
        /// Input/output error.
        Io = 5, "NBD_EIO";
        /// Cannot allocate memory.
        NoMem = 12, "NBD_ENOMEM";
        /// Invalid argument.
        Inval = 22, "NBD_EINVAL";
        /// No space left on the device; a write past the end of the export.
        NoSpc = 28, "NBD_ENOSPC";
        /// Value too large; a read that does not fit one chunk, or a request that is too long.
        Overflow = 75, "NBD_EOVERFLOW";
        /// Not supported; only the answer to a fast zero that would be slow.
        NotSup = 95, "NBD_ENOTSUP";
        /// The server is shutting down.
        Shutdown = 108, "NBD_ESHUTDOWN";
    }
}
impl Errno {
    const KIND: &'static str = "error";

    /// This error, or [`Errno::Inval`] for a number that the specification does not list.
    #[must_use]
    pub const fn normalized(self) -> Self {
        match self {
            Self::Other(_) => Self::Inval,
            known => known,
        }
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn every_number_survives_decoding_and_encoding() {
        for code in 0..=u16::MAX {
            assert_eq!(Command::from(code).code(), code);
            assert_eq!(ReplyType::from(code).code(), code);
            assert_eq!(InfoType::from(code).code(), code);
        }
        for code in (0..200).chain(0x8000_0000..0x8000_0020) {
            assert_eq!(OptionCode::from(code).code(), code);
            assert_eq!(OptionReplyCode::from(code).code(), code);
            assert_eq!(Errno::from(code).code(), code);
        }
    }

    #[test]
    fn an_unlisted_error_counts_as_einval() {
        // C-219
        assert_eq!(Errno::from(9999).normalized(), Errno::Inval);
        assert_eq!(Errno::from(28).normalized(), Errno::NoSpc);
        assert_eq!(Errno::from(9999).to_string(), "error 0x270f");
    }
}
