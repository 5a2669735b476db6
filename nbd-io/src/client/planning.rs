//! Planning of requests of any length at any place, by requests that a server takes.
//!
//! Nothing here sends or waits: the clients carry out the plans.

mod extents;
mod split;

pub use extents::{ExtentStep, StatusRun, StatusRuns};
pub use split::{Piece, split};

use super::{Error, Negotiated};
use nbd_proto::{Command, Errno, Misuse, client::Transmission};
use std::{
    io::{self, SeekFrom},
    ops::Range,
};

/// Pieces of one request that are in flight at once.
pub const WINDOW: usize = 8;

/// A part of a range, read or written by itself: whole blocks, or some bytes of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its bytes, of which there is at least one.
    pub range: Range<u64>,
    /// The blocks that they are in. To write a part of one, it has to be read and written as a
    /// whole.
    pub blocks: Range<u64>,
}

impl Part {
    /// Whether it is made of whole blocks.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.range == self.blocks
    }

    /// Where its bytes are among those of its blocks.
    #[must_use]
    pub fn place(&self) -> Range<usize> {
        let start = index(self.range.start - self.blocks.start);
        start..start + length(&self.range)
    }
}

impl Negotiated {
    /// Number of bytes of the export that can be reached.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.export.reachable()
    }

    /// Number of bytes, of `len` in a buffer, that can be reached from `offset` on.
    #[must_use]
    pub fn until_end(&self, offset: u64, len: usize) -> usize {
        let left = self.size().saturating_sub(offset);
        usize::try_from(left).map_or(len, |left| len.min(left))
    }

    /// Where a position in the export is after it has been changed. It may be behind the end.
    ///
    /// # Errors
    ///
    /// When it would be before the start.
    pub fn seek(&self, position: u64, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.size().checked_add_signed(offset),
            SeekFrom::Current(offset) => position.checked_add_signed(offset),
        };
        position.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "cannot seek before the start of an export",
            )
        })
    }

    /// The range of a request, unless it cannot all be reached. An empty one may be anywhere.
    ///
    /// # Errors
    ///
    /// [`Misuse::OutOfBounds`] or [`Misuse::Unreachable`].
    #[inline]
    pub fn range(&self, command: Command, offset: u64, len: u64) -> Result<Range<u64>, Misuse> {
        if len > 0 {
            self.export.check_range(command, offset, len)?;
        }
        Ok(offset..offset.saturating_add(len))
    }

    /// The whole blocks that a range touches.
    #[must_use]
    pub fn around(&self, range: &Range<u64>) -> Range<u64> {
        if range.is_empty() {
            return range.clone();
        }
        let within = self.within_block();
        range.start & !within..((range.end - 1) | within).saturating_add(1)
    }

    /// Whether a range has something in it, and is made of whole blocks.
    #[inline]
    #[must_use]
    pub fn is_whole(&self, range: &Range<u64>) -> bool {
        (range.start | range.end) & self.within_block() == 0 && !range.is_empty()
    }

    /// Cuts a range into a part of a block, whole blocks, and a part of a block, as far as it has
    /// them.
    pub fn parts(&self, range: Range<u64>) -> impl Iterator<Item = Part> + use<> {
        let within = self.within_block();
        let Range {
            start: mut next,
            end,
        } = range;
        std::iter::from_fn(move || {
            if next >= end {
                return None;
            }
            let start = next;
            let block = start & !within;
            if start == block && end - start > within {
                next = end & !within;
                let range = start..next;
                let blocks = range.clone();
                return Some(Part { range, blocks });
            }
            let blocks = block..(block | within).saturating_add(1);
            next = end.min(blocks.end);
            let range = start..next;
            Some(Part { range, blocks })
        })
    }

    /// The bits of an offset that say where in a block it is: a minimum block size is a power of
    /// two.
    fn within_block(&self) -> u64 {
        u64::from(self.blocks.minimum()) - 1
    }

    /// Cuts a range into pieces of at most `max` bytes.
    pub fn pieces(
        &self,
        offset: u64,
        len: u64,
        max: u64,
    ) -> impl Iterator<Item = Piece> + Clone + use<> {
        split(offset, len, max, self.blocks.preferred().into())
    }

    /// The longest that a piece may be, in bytes.
    #[must_use]
    pub const fn max_len(&self, command: Command) -> u64 {
        match command {
            // With chunks a longer read is possible, but a server need not answer it.
            Command::Read | Command::Write => self.max_payload,
            Command::WriteZeroes => self.max_zeroes,
            _ => self.max_range,
        }
    }

    /// Limit of a piece's length in bytes when a request is tried again that has failed with pieces
    /// of at most `max` bytes: a server may find a range without payload too long that others take.
    /// `None` if that would be of no use.
    #[must_use]
    pub fn shorter(&self, len: u64, max: u64, error: &Error) -> Option<u64> {
        let too_long = matches!(error.errno(), Some(Errno::Overflow | Errno::Inval));
        let short = self.max_payload;
        (too_long && len > short && max > short).then_some(short)
    }
}

/// Longer ranges than this are made of whole ones.
const ALIGNED: u64 = 64 << 10;

/// The longest range that a server in use can be trusted with, in bytes.
///
/// nbd-server, which sends no block sizes, acknowledges longer zeroes than 64 MiB and leaves the
/// bytes behind the first 64 MiB as they were. nbdkit 1.32 ends if a client asks for the status of
/// 2^32 - 1 bytes, which is the most that the field takes, and the extent is longer.
#[must_use]
pub fn longest(transmission: &Transmission, command: Command) -> u64 {
    let max = match (command, transmission.export().block_sizes) {
        (Command::WriteZeroes, None) => transmission.max_len(Command::Write),
        _ => transmission.max_len(command),
    };
    match max - max % ALIGNED {
        0 => max,
        whole => whole,
    }
}

/// A place in a buffer that exists.
#[inline]
#[must_use]
pub fn index(place: u64) -> usize {
    usize::try_from(place).expect("a place in a buffer fits into memory")
}

/// The length of a buffer that exists.
#[inline]
#[must_use]
pub fn length(range: &Range<u64>) -> usize {
    index(range.end - range.start)
}

#[cfg(test)]
mod tests;
