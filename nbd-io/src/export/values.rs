//! Values that requests and contexts exchange with an export.

use nbd_proto::{CommandFlags, ContextName};

/// The ways in which [`Export::write_zeroes`](super::Export::write_zeroes) may make zeroes.
///
/// With no field set, the back end may punch holes, take its time, and leave stable storage for
/// the next flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ZeroMode {
    /// The range has to be allocated afterwards, so that a later write cannot run out of space.
    pub no_hole: bool,
    /// Fail at once with [`Errno::NotSup`](nbd_proto::Errno::NotSup) rather than be as slow as a write.
    pub fast: bool,
    /// Return only when the zeroes are on stable storage.
    pub fua: bool,
}

impl From<CommandFlags> for ZeroMode {
    fn from(flags: CommandFlags) -> Self {
        Self {
            no_hole: flags.contains(CommandFlags::NO_HOLE),
            fast: flags.contains(CommandFlags::FAST_ZERO),
            fua: flags.contains(CommandFlags::FUA),
        }
    }
}

impl From<ZeroMode> for CommandFlags {
    fn from(mode: ZeroMode) -> Self {
        let when = |set, flag| if set { flag } else { Self::NONE };
        when(mode.no_hole, Self::NO_HOLE)
            | when(mode.fast, Self::FAST_ZERO)
            | when(mode.fua, Self::FUA)
    }
}

/// A meta context that an export has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MetaContext {
    /// Its name, which is not a wildcard.
    pub name: ContextName,
    /// Whether a status of it may need more than 32 bits, which only extended headers can carry.
    pub wide: bool,
}

impl MetaContext {
    /// A context whose statuses have 32 bits.
    #[must_use]
    pub const fn new(name: ContextName) -> Self {
        Self { name, wide: false }
    }

    /// A context whose statuses have 64 bits.
    #[must_use]
    pub const fn wide(name: ContextName) -> Self {
        Self { name, wide: true }
    }
}
