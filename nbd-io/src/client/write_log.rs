//! Changes that may not be on stable storage.
//!
//! This machine has no socket, no lock, no task and no clock. Replies are reported to it in the
//! order in which they are read, whichever connection they come over and whichever call waits for
//! them: changes have to be replayed in that order after a crash, or old data could win.
//!
//! **Epochs.** When a connection is lost, the server may have crashed: answered, unflushed changes
//! may be gone, and a later flush covers nothing of before. So a loss ends an epoch. A connection
//! belongs to the epoch in which it became a member, and an answer over a connection of an epoch
//! that is over does not count: the request has to be sent again.
//!
//! **Replay.** The server may not have crashed, or may crash again in the middle of a replay. So that
//! this takes no byte back to an older value, be it written with FUA or flushed by another client,
//! each byte is written once, as the latest change has it.
//!
//! **Group flush.** A change without a copy counts as answered when a flush has covered it. Any number
//! of such changes share one flush: one of their callers has the turn to send it, and the others ask
//! whether it has covered theirs. A flush of the program covers them, too.

mod latest;
#[cfg(test)]
mod tests;

use super::{Error, Request};
#[cfg(feature = "mutations")]
use crate::mutation::Mutation;
use latest::latest;
use std::collections::VecDeque;

/// Cost of an entry of the log beside its payload, in bytes.
const OVERHEAD: u64 = 128;

/// The changes of an export that were answered, and whether they are on stable storage.
///
/// With a limit, copies of changes are kept until a flush covers them, to be written again after a
/// loss. Room for each is [reserved](WriteLog::reserve) before it is sent, so that changes in
/// flight and kept copies stay below the limit together. Without one the log only counts, and
/// reports that something may have been [lost](WriteLog::losses).
#[derive(Debug)]
pub struct WriteLog {
    limit: u64,
    epoch: Epoch,
    answered: u64,
    /// The number of the last change that may not be on stable storage.
    unflushed: u64,
    flushed: u64,
    losses: u64,
    entries: VecDeque<Entry>,
    /// Cost of the entries in bytes.
    kept: u64,
    /// Reserved for changes that are not answered, in bytes.
    reserved: u64,
    needs_replay: bool,
    /// One of the callers that wait for a flush has the turn to send it.
    has_turn: bool,
    /// The number of changes that the last failed flush would have covered, and its error.
    failed: Option<(u64, Error)>,
}

/// The state of a change that was answered and not kept.
#[derive(Debug)]
pub enum Coverage {
    /// A flush has covered it.
    Covered,
    /// A connection was lost before that: the change has to be sent again.
    Lost,
    /// The flush that would have covered it failed.
    Failed(Error),
    /// Another caller has the turn to send a flush: look again when [its turn ends](WriteLog::end_turn).
    Wait,
    /// This caller has the turn.
    Flush,
}

/// The time between two losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(pub(super) u64);

impl Epoch {
    /// No replies count that belong to it.
    pub(super) const NONE: Self = Self(0);
}

#[derive(Debug)]
struct Entry {
    number: u64,
    request: Request,
}

impl WriteLog {
    /// An empty log that keeps up to `limit` bytes; 0 keeps nothing.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self {
            limit,
            epoch: Epoch(Epoch::NONE.0 + 1),
            answered: 0,
            unflushed: 0,
            flushed: 0,
            losses: 0,
            entries: VecDeque::new(),
            kept: 0,
            reserved: 0,
            needs_replay: false,
            has_turn: false,
            failed: None,
        }
    }

    /// Whether changes are kept.
    #[must_use]
    pub const fn keeps(&self) -> bool {
        self.limit > 0
    }

    /// The epoch of now.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Number of answered changes. A flush that is sent now covers these.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.answered
    }

    /// Number of times that some of them may have been lost.
    #[must_use]
    pub const fn losses(&self) -> u64 {
        self.losses
    }

    /// Cost in bytes of an entry with so much payload.
    #[must_use]
    pub const fn cost(payload: u64) -> u64 {
        payload.saturating_add(OVERHEAD)
    }

    /// Reserves room for entries that count for so many bytes, if there is room.
    pub const fn reserve(&mut self, bytes: u64) -> bool {
        let taken = self.kept.saturating_add(self.reserved);
        let fits = taken.saturating_add(bytes) <= self.limit;
        if fits {
            self.reserved += bytes;
        }
        fits
    }

    /// Gives back room that was reserved.
    pub const fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// The reply to a change was read, over a connection of `epoch`. With the reply it is on stable
    /// storage if it is `forced`. It is kept if it is given; then its room was reserved. Whether the
    /// reply counts: if it does not, the room stays reserved.
    #[must_use]
    pub fn change(&mut self, epoch: Epoch, forced: bool, kept: Option<Request>) -> bool {
        if epoch != self.epoch {
            return false;
        }
        self.answered += 1;
        if !forced {
            self.unflushed = self.answered;
        }
        if let Some(request) = kept {
            let cost = Self::cost(request.weight());
            self.release(cost);
            // One that is on stable storage is kept if an older one would overwrite it.
            if !forced || !self.entries.is_empty() {
                self.kept += cost;
                self.entries.push_back(Entry {
                    number: self.answered,
                    request,
                });
            }
        }
        true
    }

    /// The reply to a flush was read, over a connection of `epoch`. When it was sent, so many changes
    /// were [answered](WriteLog::answered). Whether the reply counts.
    #[must_use]
    pub fn flush(&mut self, epoch: Epoch, answered: u64) -> bool {
        if epoch != self.epoch {
            return false;
        }
        self.flushed = self.flushed.max(answered);
        while let Some(Entry { number, request }) = self.entries.front()
            && *number <= answered
        {
            self.kept -= Self::cost(request.weight());
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
        true
    }

    /// The server failed a flush. When that was sent, so many changes were answered: their callers
    /// must learn of it even if a later flush succeeds, because a server may forget a failure once it
    /// has reported it.
    pub fn flush_failed(&mut self, epoch: Epoch, answered: u64, error: &Error) {
        let known = self.failed.as_ref().map(|(number, _)| *number);
        if epoch == self.epoch && known.is_none_or(|number| number <= answered) {
            self.failed = Some((answered, error.clone()));
        }
    }

    /// The state of the first `answered` changes, the last of which was sent in `epoch`.
    #[must_use]
    pub fn cover(&mut self, epoch: Epoch, answered: u64) -> Coverage {
        match &self.failed {
            Some((number, error)) if answered <= *number => Coverage::Failed(error.clone()),
            _ if epoch != self.epoch => Coverage::Lost,
            _ if answered <= self.flushed => Coverage::Covered,
            _ if self.has_turn => Coverage::Wait,
            _ => {
                self.has_turn = true;
                Coverage::Flush
            }
        }
    }

    /// The caller that had the turn to send a flush has its result, or has given it up.
    pub const fn end_turn(&mut self) {
        self.has_turn = false;
    }

    /// A connection was lost, and with it perhaps unflushed changes. No reply of an older
    /// connection counts from now on.
    pub fn end_epoch(&mut self) {
        self.epoch.0 += 1;
        if self.keeps() {
            self.needs_replay = !self.entries.is_empty();
        } else if self.unflushed > self.flushed {
            self.flushed = self.answered;
            self.losses += 1;
        }
    }

    /// Whether kept changes have to be replayed before any other request.
    #[must_use]
    pub const fn needs_replay(&self) -> bool {
        self.needs_replay
    }

    /// The changes to be written again, in order, and the epoch that will have been replayed then.
    /// No byte is written that a later one of them writes.
    #[must_use]
    pub fn replay(&self) -> (Epoch, Vec<Request>) {
        let requests = self.entries.iter().map(|entry| &entry.request);
        #[cfg(feature = "mutations")]
        if let Some(mistake) = Mutation::replay(requests.clone()) {
            return (self.epoch, mistake);
        }
        (self.epoch, latest(requests))
    }

    /// Takes note that the kept changes were written again. Returns whether that is enough: not if
    /// a connection was lost meanwhile.
    pub fn replayed(&mut self, epoch: Epoch) -> bool {
        let is_enough = epoch == self.epoch;
        self.needs_replay &= !is_enough;
        is_enough
    }
}
