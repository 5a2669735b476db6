//! Bit sets on the wire. Unknown bits are kept when decoding and are the reader's to ignore.

/// Defines a bit set over a wire integer, with the specification's names.
macro_rules! flags {
    (
        $(#[$doc:meta])*
        pub struct $name:ident($repr:ty) {
            $($(#[$flag_doc:meta])* $flag:ident = $bit:literal, $spec:literal;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name($repr);

        impl $name {
            $(
                #[doc = concat!("`", $spec, "`.")]
                $(#[$flag_doc])*
                pub const $flag: Self = Self(1 << $bit);
            )*

            /// No bit at all.
            pub const NONE: Self = Self(0);

            /// The bits that come from, or go to, the wire.
            #[must_use]
            pub const fn from_bits(bits: $repr) -> Self {
                Self(bits)
            }

            /// The bits as they are on the wire.
            #[must_use]
            pub const fn bits(self) -> $repr {
                self.0
            }

            /// Whether every bit of `flags` is set.
            #[must_use]
            pub const fn contains(self, flags: Self) -> bool {
                self.0 & flags.0 == flags.0
            }

            /// These bits without those of `flags`.
            #[must_use]
            pub const fn without(self, flags: Self) -> Self {
                Self(self.0 & !flags.0)
            }

            /// These bits and those of `flags`.
            #[must_use]
            pub const fn with(self, flags: Self) -> Self {
                Self(self.0 | flags.0)
            }

            /// Whether no bit is set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }

        impl core::ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                self.with(other)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                let mut rest = self.0;
                let mut separator = "";
                $(
                    if rest & (1 << $bit) != 0 {
                        write!(f, "{separator}{}", $spec)?;
                        rest &= !(1 << $bit);
                        separator = " | ";
                    }
                )*
                if rest != 0 || separator.is_empty() {
                    write!(f, "{separator}{rest:#x}")?;
                }
                Ok(())
            }
        }
    };
}

flags! {
    /// The offer of a server in its greeting.
    ///
    /// Spec: [Handshake flags](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#handshake-flags).
    /// They travel in the clear and can be changed by a man in the middle: nothing that matters
    /// for security depends on them.
    pub struct HandshakeFlags(u16) {
        FIXED_NEWSTYLE = 0, "NBD_FLAG_FIXED_NEWSTYLE";
        NO_ZEROES = 1, "NBD_FLAG_NO_ZEROES";
    }
}

flags! {
    /// The part of the server's offer that a client takes up.
    ///
    /// Spec: [Client flags](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#client-flags).
    pub struct ClientFlags(u32) {
        FIXED_NEWSTYLE = 0, "NBD_FLAG_C_FIXED_NEWSTYLE";
        NO_ZEROES = 1, "NBD_FLAG_C_NO_ZEROES";
    }
}

flags! {
    /// The capabilities of an export.
    ///
    /// Spec: [Transmission flags](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#transmission-flags).
    pub struct TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0, "NBD_FLAG_HAS_FLAGS";
        READ_ONLY = 1, "NBD_FLAG_READ_ONLY";
        SEND_FLUSH = 2, "NBD_FLAG_SEND_FLUSH";
        SEND_FUA = 3, "NBD_FLAG_SEND_FUA";
        ROTATIONAL = 4, "NBD_FLAG_ROTATIONAL";
        SEND_TRIM = 5, "NBD_FLAG_SEND_TRIM";
        SEND_WRITE_ZEROES = 6, "NBD_FLAG_SEND_WRITE_ZEROES";
        SEND_DF = 7, "NBD_FLAG_SEND_DF";
        CAN_MULTI_CONN = 8, "NBD_FLAG_CAN_MULTI_CONN";
        /// Of an experimental draft; ignored.
        SEND_RESIZE = 9, "NBD_FLAG_SEND_RESIZE";
        SEND_CACHE = 10, "NBD_FLAG_SEND_CACHE";
        SEND_FAST_ZERO = 11, "NBD_FLAG_SEND_FAST_ZERO";
        /// Only with extended headers.
        BLOCK_STATUS_PAYLOAD = 12, "NBD_FLAG_BLOCK_STATUS_PAYLOAD";
    }
}

flags! {
    /// Flags of a command.
    ///
    /// Spec: [Command flags](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#command-flags).
    pub struct CommandFlags(u16) {
        /// Reply only when the data is on stable storage.
        FUA = 0, "NBD_CMD_FLAG_FUA";
        /// Zeroes must be allocated.
        NO_HOLE = 1, "NBD_CMD_FLAG_NO_HOLE";
        /// Do not fragment: one content chunk.
        DF = 2, "NBD_CMD_FLAG_DF";
        /// One extent per context.
        REQ_ONE = 3, "NBD_CMD_FLAG_REQ_ONE";
        /// Fail rather than write zeroes slowly.
        FAST_ZERO = 4, "NBD_CMD_FLAG_FAST_ZERO";
        /// The length field counts a payload; set by this crate where extended headers need it.
        PAYLOAD_LEN = 5, "NBD_CMD_FLAG_PAYLOAD_LEN";
    }
}

flags! {
    /// Where a chunk stands in its reply.
    ///
    /// Spec: [Structured reply flags](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#structured-reply-flags).
    pub struct ReplyFlags(u16) {
        /// The last chunk of the reply.
        DONE = 0, "NBD_REPLY_FLAG_DONE";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn flags_are_shown_by_the_names_of_the_specification() {
        let flags = TransmissionFlags::from_bits(0x8003);
        assert_eq!(
            format!("{flags:?}"),
            "NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | 0x8000"
        );
        assert_eq!(format!("{:?}", CommandFlags::NONE), "0x0");
    }
}
