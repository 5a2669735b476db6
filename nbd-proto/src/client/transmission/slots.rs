//! The requests in flight.

use super::coverage::Coverage;
use crate::{Command, CommandFlags, Failure, meta::Extent};
use alloc::vec::Vec;
use core::fmt;

/// The number of a request in flight.
///
/// It is opaque to the server and different for every request of the last 2^32 that used the same
/// [`slot`](Cookie::slot).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(u64);

impl Cookie {
    #[inline]
    fn new(slot: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(slot))
    }

    /// The number on the wire.
    #[inline]
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// A small number that no other request in flight has, less than
    /// [`Limits::in_flight`](crate::client::Limits::in_flight): an index for a driver's own table
    /// of requests.
    #[inline]
    #[must_use]
    pub const fn slot(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cookie({:#x})", self.0)
    }
}

/// Extents of one meta context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextExtents {
    /// The context's number; see [`Transmission::contexts`](super::Transmission::contexts).
    pub id: u32,
    /// The runs of equal status, from the start of the request on without gaps. The extents may end
    /// before the request does, and the last one may end behind it, but not behind the export.
    pub extents: Vec<Extent>,
}

/// A request in flight and the part of its reply that has come.
#[derive(Debug)]
pub(super) struct Slot {
    generation: u32,
    busy: bool,
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The payload is not wanted any more.
    pub(super) abandoned: bool,
    /// The first error that was reported.
    pub(super) failure: Option<Failure>,
    pub(super) error_chunks: u32,
    /// Content chunks of a read.
    pub(super) contents: u64,
    pub(super) coverage: Coverage,
    pub(super) statuses: Vec<ContextExtents>,
    /// Contexts to be reported; all that are selected if `None`.
    pub(super) filter: Option<Vec<u32>>,
}

impl Slot {
    /// Whether no part of its reply has come, and it was not given up.
    #[inline]
    pub(super) const fn is_untouched(&self) -> bool {
        // Every other field of a reply comes with one of these. Only reads have content.
        self.contents == 0
            && self.error_chunks == 0
            && self.failure.is_none()
            && self.statuses.is_empty()
            && !self.abandoned
    }

    /// Ends a request to which nothing has come but one reply that is complete.
    ///
    /// INVARIANT: it [is untouched](Slot::is_untouched), and is no block status with a filter.
    #[inline]
    pub(super) const fn free_untouched(&mut self) {
        self.busy = false;
    }

    /// Whether it is a read that has all its bytes, one after the other.
    #[inline]
    pub(super) fn is_read(&self) -> bool {
        self.command == Command::Read && self.failure.is_none() && self.coverage.is_prefix(self.len)
    }
}

/// A table of slots that are taken from and given back to the end of a list.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    limit: u32,
}

impl Slots {
    pub(super) const fn new(limit: u32) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            limit,
        }
    }

    #[inline]
    pub(super) const fn limit(&self) -> u32 {
        self.limit
    }

    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && u32::try_from(self.slots.len()).is_ok_and(|len| len >= self.limit)
    }

    /// Takes a slot for a request. INVARIANT: not called when [`is_full`](Slots::is_full).
    #[inline]
    pub(super) fn take(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        len: u64,
    ) -> Cookie {
        let index = self.free.pop().unwrap_or_else(|| self.grow());
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.busy = true;
        slot.command = command;
        slot.flags = flags;
        slot.offset = offset;
        slot.len = len;
        Cookie::new(index, slot.generation)
    }

    /// Makes another slot.
    #[cold]
    fn grow(&mut self) -> u32 {
        let index = u32::try_from(self.slots.len()).expect("the table is not full");
        self.slots.push(Slot {
            generation: 0,
            busy: false,
            command: Command::Read,
            flags: CommandFlags::NONE,
            offset: 0,
            len: 0,
            abandoned: false,
            failure: None,
            error_chunks: 0,
            contents: 0,
            coverage: Coverage::default(),
            statuses: Vec::new(),
            filter: None,
        });
        index
    }

    /// The request in flight that a cookie from the wire names.
    #[inline]
    pub(super) fn find(&self, cookie: u64) -> Option<Cookie> {
        let cookie = Cookie(cookie);
        let slot = self.slots.get(cookie.slot())?;
        (slot.busy && u64::from(slot.generation) == cookie.0 >> 32).then_some(cookie)
    }

    /// Like [`find`](Slots::find), with its slot.
    #[inline]
    pub(super) fn find_mut(&mut self, cookie: u64) -> Option<(Cookie, &mut Slot)> {
        let cookie = Cookie(cookie);
        let slot = self.slots.get_mut(cookie.slot())?;
        let is_it = slot.busy && u64::from(slot.generation) == cookie.0 >> 32;
        is_it.then_some((cookie, slot))
    }

    /// The slot of a request in flight.
    ///
    /// INVARIANT: `cookie` comes from [`take`](Slots::take) or [`find`](Slots::find) and was not
    /// released since.
    #[inline]
    pub(super) fn get(&mut self, cookie: Cookie) -> &mut Slot {
        &mut self.slots[cookie.slot()]
    }

    /// Like [`get`](Slots::get), to look at.
    #[inline]
    pub(super) fn slot(&self, cookie: Cookie) -> &Slot {
        &self.slots[cookie.slot()]
    }

    /// Whether the payload of a request in flight is not wanted any more.
    #[inline]
    pub(super) fn is_abandoned(&self, cookie: Cookie) -> bool {
        self.slot(cookie).abandoned
    }

    /// Frees the slot of a request whose reply is complete.
    #[inline]
    pub(super) fn release(&mut self, cookie: Cookie) {
        let slot = self.get(cookie);
        slot.busy = false;
        slot.abandoned = false;
        slot.failure = None;
        slot.error_chunks = 0;
        slot.contents = 0;
        slot.coverage.clear();
        if slot.command == Command::BlockStatus {
            slot.statuses = Vec::new();
            slot.filter = None;
        }
        self.put_back(cookie);
    }

    /// Adds a slot to those that are free.
    ///
    /// INVARIANT: it was busy until now.
    #[inline]
    pub(super) fn put_back(&mut self, cookie: Cookie) {
        self.free
            .push(u32::try_from(cookie.slot()).expect("a slot number has 32 bits"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cookie_is_in_flight_twice() {
        // C-168
        let mut slots = Slots::new(3);
        let mut seen = alloc::collections::BTreeSet::new();
        for _ in 0..if cfg!(miri) { 200 } else { 100_000 } {
            let cookie = slots.take(Command::Read, CommandFlags::NONE, 0, 1);
            assert!(seen.insert(cookie));
            assert_eq!(slots.find(cookie.as_u64()), Some(cookie));
            slots.release(cookie);
            assert_eq!(slots.find(cookie.as_u64()), None);
        }
        for _ in 0..3 {
            assert!(!slots.is_full());
            slots.take(Command::Read, CommandFlags::NONE, 0, 1);
        }
        assert!(slots.is_full());
    }
}
