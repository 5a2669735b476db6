//! Mistakes that can be made on purpose, to see that the simulation notices them.
//!
//! Without the feature `mutations`, none is in the program.

#[cfg(feature = "mutations")]
use crate::client::Request;
#[cfg(feature = "mutations")]
use std::sync::atomic::{AtomicUsize, Ordering};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Unflushed changes are not replayed.
    DropReplay,
    /// They are replayed from the last to the first.
    ReorderReplay,
    /// They are replayed with the parts that later ones have overwritten.
    ReplayOverwritten,
    /// A server answers a flush that it has not carried out.
    EarlyFlush,
    /// Changes of the same bytes do not wait for each other.
    NoRangeLocks,
    /// A flush does not fail after unflushed changes may have been lost.
    SilentLoss,
    /// A server merges neighbouring extents whatever their status is.
    MergedStatus,
    /// A timer is set for a deadline that has passed.
    LateTimer,
    /// Requests are given up as late without a look at answers that have come.
    UnreadAnswers,
    /// A request has twice the time that it may take.
    LateDeadline,
    /// A collection of garbage forgets the snapshots.
    CollectSnapshots,
    /// A snapshot does not look whether garbage was collected while it was taken.
    UncountedSnapshot,
    /// A commit replaces the head of a disk even if another writer has it by then.
    UnconditionalCommit,
    /// A commit that was refused is tried again without a look at who has the disk.
    UncheckedWriter,
}

#[cfg(feature = "mutations")]
impl Mutation {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::DropReplay,
        Self::ReorderReplay,
        Self::ReplayOverwritten,
        Self::EarlyFlush,
        Self::NoRangeLocks,
        Self::SilentLoss,
        Self::MergedStatus,
        Self::LateTimer,
        Self::UnreadAnswers,
        Self::LateDeadline,
        Self::CollectSnapshots,
        Self::UncountedSnapshot,
        Self::UnconditionalCommit,
        Self::UncheckedWriter,
    ];

    /// Has the process make a mistake from now on, or none.
    pub fn make(mistake: Option<Self>) {
        MADE.store(
            mistake.map_or(usize::MAX, |made| made as usize),
            Ordering::Relaxed,
        );
    }

    /// Whether the process makes it.
    #[must_use]
    pub fn is_made(self) -> bool {
        MADE.load(Ordering::Relaxed) == self as usize
    }

    /// The requests that are replayed in place of the right ones.
    pub(crate) fn replay<'a>(
        kept: impl DoubleEndedIterator<Item = &'a Request>,
    ) -> Option<Vec<Request>> {
        match Self::ALL.into_iter().find(|mistake| mistake.is_made())? {
            Self::DropReplay => Some(Vec::new()),
            Self::ReorderReplay => Some(kept.rev().cloned().collect()),
            Self::ReplayOverwritten => Some(kept.cloned().collect()),
            _ => None,
        }
    }
}

#[cfg(feature = "mutations")]
static MADE: AtomicUsize = AtomicUsize::new(usize::MAX);

#[cfg(not(feature = "mutations"))]
impl Mutation {
    /// None is made.
    #[must_use]
    pub const fn is_made(self) -> bool {
        false
    }
}
