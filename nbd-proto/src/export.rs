//! A client's knowledge of an export.

use crate::{
    Error, ExportName, Misuse, Text,
    wire::{Command, HeaderStyle, TransmissionFlags, WireBlockSizes},
};

/// The block size constraints of an export, in bytes.
///
/// Spec: [Size constraints](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#size-constraints).
/// A value of this type obeys the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

impl BlockSizes {
    /// The block sizes of a server that sends none: any offset and length, 4 KiB preferred, and a
    /// payload of at most 32 MiB.
    pub const UNKNOWN: Self = Self {
        minimum: 1,
        preferred: 4096,
        maximum: 32 << 20,
    };

    /// Checks block sizes.
    ///
    /// # Errors
    ///
    /// [`Error::BlockSizes`], unless the minimum is a power of two up to 65 536, the preferred
    /// size is a power of two that is at least 512 and the minimum, and the maximum is at least
    /// the preferred size.
    pub const fn new(minimum: u32, preferred: u32, maximum: u32) -> Result<Self, Error> {
        let legal = minimum.is_power_of_two()
            && minimum <= 65_536
            && preferred.is_power_of_two()
            && preferred >= 512
            && preferred >= minimum
            && maximum >= preferred;
        if legal {
            Ok(Self {
                minimum,
                preferred,
                maximum,
            })
        } else {
            Err(Error::BlockSizes {
                minimum,
                preferred,
                maximum,
            })
        }
    }

    /// Every offset and length is to be a multiple of this.
    #[must_use]
    pub const fn minimum(self) -> u32 {
        self.minimum
    }

    /// Multiples of this are fastest.
    #[must_use]
    pub const fn preferred(self) -> u32 {
        self.preferred
    }

    /// The longest payload of one request; `u32::MAX` for no fixed limit.
    #[must_use]
    pub const fn maximum(self) -> u32 {
        self.maximum
    }
}

impl TryFrom<WireBlockSizes> for BlockSizes {
    type Error = Error;

    fn try_from(sizes: WireBlockSizes) -> Result<Self, Error> {
        Self::new(sizes.minimum, sizes.preferred, sizes.maximum)
    }
}

impl From<BlockSizes> for WireBlockSizes {
    fn from(sizes: BlockSizes) -> Self {
        Self {
            minimum: sizes.minimum,
            preferred: sizes.preferred,
            maximum: sizes.maximum,
        }
    }
}

/// The description of an export, as a server sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportInfo {
    /// Its size in bytes, as the server sent it. May exceed `i64::MAX`, and a client may not be
    /// able to [reach](Self::reachable) all of it.
    pub size: u64,
    /// Its capabilities.
    pub flags: TransmissionFlags,
    /// Its canonical name, if that was sent.
    pub name: Option<ExportName>,
    /// Text for people, if that was sent.
    pub description: Option<Text>,
    /// Its block size constraints, if they were sent.
    pub block_sizes: Option<BlockSizes>,
}

impl ExportInfo {
    /// An export of `size` bytes with nothing known but `flags`.
    #[must_use]
    pub fn new(size: u64, flags: TransmissionFlags) -> Self {
        Self {
            size,
            flags: flags.with(TransmissionFlags::HAS_FLAGS),
            name: None,
            description: None,
            block_sizes: None,
        }
    }

    /// The block size constraints that hold, [`BlockSizes::UNKNOWN`] if none were sent.
    #[inline]
    #[must_use]
    pub fn blocks(&self) -> BlockSizes {
        self.block_sizes.unwrap_or(BlockSizes::UNKNOWN)
    }

    /// Number of bytes from the start on that a client can reach: the size, without an incomplete
    /// block at the end. Servers should not have one, but some do.
    ///
    /// Spec: [Size constraints](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#size-constraints).
    #[inline]
    #[must_use]
    pub fn reachable(&self) -> u64 {
        // A power of two.
        self.size & !u64::from(self.blocks().minimum() - 1)
    }

    /// Checks that a client can reach a range, which need not be made of whole blocks.
    ///
    /// # Errors
    ///
    /// [`Misuse::OutOfBounds`] or [`Misuse::Unreachable`].
    #[inline]
    pub fn check_range(&self, command: Command, offset: u64, len: u64) -> Result<(), Misuse> {
        let size = self.size;
        let reachable = self.reachable();
        match offset.checked_add(len) {
            Some(end) if end <= reachable => Ok(()),
            Some(end) if end <= size => Err(Misuse::Unreachable {
                command,
                offset,
                len,
                reachable,
                size,
                minimum: self.blocks().minimum(),
            }),
            _ => Err(Misuse::OutOfBounds {
                command,
                offset,
                len,
                size,
            }),
        }
    }

    /// Checks that a range is made of whole blocks.
    ///
    /// # Errors
    ///
    /// [`Misuse::Unaligned`].
    #[inline]
    pub fn check_blocks(&self, command: Command, offset: u64, len: u64) -> Result<(), Misuse> {
        let minimum = self.blocks().minimum();
        if (offset | len) & u64::from(minimum - 1) != 0 {
            return Err(Misuse::Unaligned {
                command,
                offset,
                len,
                minimum,
            });
        }
        Ok(())
    }

    /// The flags that can be meant: without those that need options that were not negotiated, and
    /// without a fast zero where there is no zero.
    pub(crate) fn mask(flags: TransmissionFlags, mode: HeaderStyle) -> TransmissionFlags {
        let mut flags = flags;
        if !mode.has_chunks() {
            flags = flags.without(TransmissionFlags::SEND_DF);
        }
        if mode != HeaderStyle::Extended {
            flags = flags.without(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
            flags = flags.without(TransmissionFlags::SEND_FAST_ZERO);
        }
        flags
    }

    /// Whether writes, trims and zeroes are refused.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.flags.contains(TransmissionFlags::READ_ONLY)
    }

    /// Whether several connections see each other's flushes.
    #[must_use]
    pub const fn can_multi_conn(&self) -> bool {
        self.flags.contains(TransmissionFlags::CAN_MULTI_CONN)
    }

    /// Whether the server offers flushes.
    #[must_use]
    pub const fn can_flush(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_FLUSH)
    }

    /// Whether the server offers forced unit access.
    #[must_use]
    pub const fn can_fua(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_FUA)
    }

    /// Whether the server offers trims, and the export can be written to.
    #[must_use]
    pub const fn can_trim(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_TRIM) && !self.is_read_only()
    }

    /// Whether the server offers to write zeroes, and the export can be written to.
    #[must_use]
    pub const fn can_write_zeroes(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) && !self.is_read_only()
    }

    /// Whether zeroes can be asked for on condition that they are fast.
    #[must_use]
    pub const fn can_fast_zero(&self) -> bool {
        self.can_write_zeroes() && self.flags.contains(TransmissionFlags::SEND_FAST_ZERO)
    }

    /// Whether a read can be asked for in one piece.
    #[must_use]
    pub const fn can_df(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_DF)
    }

    /// Whether the server offers to fill its cache.
    #[must_use]
    pub const fn can_cache(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_CACHE)
    }

    /// Whether block status can be asked for some of the selected contexts only.
    #[must_use]
    pub const fn can_filter_block_status(&self) -> bool {
        self.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
    }

    /// Whether the server says that the medium rotates.
    #[must_use]
    pub const fn is_rotational(&self) -> bool {
        self.flags.contains(TransmissionFlags::ROTATIONAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_checked_against_the_specification_and_each_other() {
        // C-118, S-100, H-010
        for (minimum, preferred, maximum) in [
            (0, 4096, 65536),
            (3, 4096, 65536),
            (131_072, 131_072, 1 << 20),
            (1, 256, 65536),
            (4096, 512, 65536),
            (1, 768, 65536),
            (1, 4096, 2048),
            (1 << 31, 1 << 31, u32::MAX),
            (1, 4096, 0),
        ] {
            assert_eq!(
                BlockSizes::new(minimum, preferred, maximum),
                Err(Error::BlockSizes {
                    minimum,
                    preferred,
                    maximum
                })
            );
        }
        for (minimum, preferred, maximum) in [
            (1, 512, 512),
            (65_536, 65_536, 65_536),
            (512, 4096, u32::MAX),
        ] {
            assert!(BlockSizes::new(minimum, preferred, maximum).is_ok());
        }
    }

    #[test]
    fn capabilities_that_were_not_negotiated_are_masked() {
        // C-110, C-111, C-112, H-012
        let all = TransmissionFlags::from_bits(0xffff);
        let simple = ExportInfo::new(0, ExportInfo::mask(all, HeaderStyle::Simple));
        assert!(!simple.can_df() && !simple.can_filter_block_status());
        let structured = ExportInfo::new(0, ExportInfo::mask(all, HeaderStyle::Structured));
        assert!(structured.can_df() && !structured.can_filter_block_status());
        let extended = ExportInfo::new(0, ExportInfo::mask(all, HeaderStyle::Extended));
        assert!(extended.can_filter_block_status());
        let fast = ExportInfo::mask(TransmissionFlags::from_bits(0x0801), HeaderStyle::Extended);
        assert!(!ExportInfo::new(0, fast).can_fast_zero());
    }

    #[test]
    fn each_capability_is_one_flag() {
        type Capability = fn(&ExportInfo) -> bool;
        let all = TransmissionFlags::from_bits(u16::MAX).without(TransmissionFlags::READ_ONLY);
        let cases: [(TransmissionFlags, Capability); 9] = [
            (TransmissionFlags::SEND_FLUSH, ExportInfo::can_flush),
            (TransmissionFlags::SEND_FUA, ExportInfo::can_fua),
            (TransmissionFlags::ROTATIONAL, ExportInfo::is_rotational),
            (TransmissionFlags::SEND_TRIM, ExportInfo::can_trim),
            (
                TransmissionFlags::SEND_WRITE_ZEROES,
                ExportInfo::can_write_zeroes,
            ),
            (TransmissionFlags::SEND_DF, ExportInfo::can_df),
            (
                TransmissionFlags::CAN_MULTI_CONN,
                ExportInfo::can_multi_conn,
            ),
            (TransmissionFlags::SEND_CACHE, ExportInfo::can_cache),
            (
                TransmissionFlags::BLOCK_STATUS_PAYLOAD,
                ExportInfo::can_filter_block_status,
            ),
        ];
        for (flag, can) in cases {
            assert!(can(&ExportInfo::new(1, all)), "{flag:?}");
            assert!(!can(&ExportInfo::new(1, all.without(flag))), "{flag:?}");
        }
    }

    #[test]
    fn offsets_and_lengths_are_whole_blocks_each_for_itself() {
        let mut export = ExportInfo::new(1 << 20, TransmissionFlags::NONE);
        export.block_sizes = Some(BlockSizes::new(512, 512, 4096).unwrap());
        for (offset, len, whole) in [
            (512, 1024, true),
            (512, 100, false),
            (100, 512, false),
            (256, 256, false),
        ] {
            let checked = export.check_blocks(Command::Read, offset, len);
            assert_eq!(checked.is_ok(), whole, "{offset}+{len}");
        }
    }
}
