//! The status of an extent in the well-known meta contexts.
//!
//! Spec: [Metadata querying](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#metadata-querying).

use core::fmt;

/// A run of the export about which a context says one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Its length in bytes; never 0 if a server sent it.
    pub len: u64,
    /// The status in this context; see [`Allocation`], [`DirtyBitmap`] and [`AllocationDepth`].
    pub status: u64,
}

/// The status of `base:allocation`.
///
/// Spec: [`base:allocation` metadata context](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#baseallocation-metadata-context).
///
/// An extent that is not known to be zero may still be zero, and a hole that is not known to be
/// zero has undefined contents.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Allocation(u64);

impl Allocation {
    /// `NBD_STATE_HOLE`: not allocated; a later write may run out of space.
    pub const HOLE: u64 = 1 << 0;
    /// `NBD_STATE_ZERO`: reads as zeroes.
    pub const ZERO: u64 = 1 << 1;

    /// Interprets a status; bits that are not defined are ignored.
    #[must_use]
    pub const fn new(status: u64) -> Self {
        Self(status & (Self::HOLE | Self::ZERO))
    }

    /// The status with just the defined bits.
    #[must_use]
    pub const fn status(self) -> u64 {
        self.0
    }

    /// Whether the extent is a hole.
    #[must_use]
    pub const fn is_hole(self) -> bool {
        self.0 & Self::HOLE != 0
    }

    /// Whether the extent is allocated.
    #[must_use]
    pub const fn is_allocated(self) -> bool {
        !self.is_hole()
    }

    /// Whether the extent is known to read as zeroes.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 & Self::ZERO != 0
    }
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.is_hole(), self.is_zero()) {
            (false, false) => "data",
            (false, true) => "allocated,zero",
            (true, false) => "hole",
            (true, true) => "hole,zero",
        })
    }
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The status of `qemu:dirty-bitmap:NAME`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirtyBitmap(u64);

impl DirtyBitmap {
    /// `NBD_STATE_DIRTY`: written to since the bitmap was started.
    pub const DIRTY: u64 = 1 << 0;

    /// Interprets a status; bits that are not defined are ignored.
    #[must_use]
    pub const fn new(status: u64) -> Self {
        Self(status & Self::DIRTY)
    }

    /// Whether the extent was written to.
    #[must_use]
    pub const fn is_dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }
}

impl fmt::Display for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_dirty() { "dirty" } else { "clean" })
    }
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The status of `qemu:allocation-depth`: a number, not flags.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationDepth(u64);

impl AllocationDepth {
    /// Interprets a status.
    #[must_use]
    pub const fn new(status: u64) -> Self {
        Self(status)
    }

    /// 0 where nothing is allocated, 1 in the active layer, 2 in its backing file, and so on.
    #[must_use]
    pub const fn depth(self) -> u64 {
        self.0
    }
}

impl fmt::Display for AllocationDepth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("unallocated"),
            1 => f.write_str("local"),
            depth => write!(f, "backing depth {depth}"),
        }
    }
}

impl fmt::Debug for AllocationDepth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn each_status_of_an_allocation_has_its_own_name() {
        // C-252, C-253, C-254
        for (status, name) in [
            (0, "data"),
            (1, "hole"),
            (2, "allocated,zero"),
            (3, "hole,zero"),
            (!3, "data"),
        ] {
            assert_eq!(Allocation::new(status).to_string(), name);
        }
        assert!(
            !Allocation::new(1).is_zero(),
            "a hole does not have to read as zeroes"
        );
    }

    #[test]
    fn an_allocation_depth_is_a_number() {
        assert_eq!(AllocationDepth::new(0x1_0000_0002).depth(), 0x1_0000_0002);
        assert_eq!(AllocationDepth::new(2).to_string(), "backing depth 2");
        assert_eq!(DirtyBitmap::new(3).to_string(), "dirty");
    }

    #[test]
    fn statuses_are_shown_as_words_and_asked_bit_by_bit() {
        for (status, allocated, word) in [
            (0, true, "data"),
            (1, false, "hole"),
            (2, true, "allocated,zero"),
            (3, false, "hole,zero"),
        ] {
            let allocation = Allocation::new(status);
            assert_eq!(allocation.is_allocated(), allocated);
            assert_eq!(alloc::format!("{allocation:?}"), word);
        }
        for (status, dirty, word) in [(0, false, "clean"), (1, true, "dirty"), (2, false, "clean")]
        {
            let bitmap = DirtyBitmap::new(status);
            assert_eq!(bitmap.is_dirty(), dirty);
            assert_eq!(alloc::format!("{bitmap:?}"), word);
        }
        assert_eq!(alloc::format!("{:?}", AllocationDepth::new(1)), "local");
    }
}
