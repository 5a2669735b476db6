//! The places of data and of holes in a file.

use super::{File, STAT_BLOCK, at as failed_at, host};
use nbd_proto::{
    Errno, Failure,
    meta::{Allocation, Extent},
};
use std::{io, ops::Range};

/// Least distance in bytes between two places at which a read looks for holes. A look takes next to
/// nothing beside the time to copy as much.
const STRIDE: u64 = 64 << 10;

/// Limit of looks for holes per question about a read.
const LOOKS: u64 = 16;

impl File {
    /// End of the hole at `offset`, `end` at the latest. `None` if there is data.
    fn hole_end(&self, offset: u64, end: u64) -> io::Result<Option<u64>> {
        let data = match host::seek_data(&self.file, offset)? {
            Some(data) => data,
            // From here on there is only a hole, up to where the file ends now: bytes that were cut
            // off cannot be read.
            None => self.file.metadata()?.len(),
        };
        let unit = self.extent_unit();
        let hole_end = if data < end { data - data % unit } else { end };
        Ok((hole_end > offset).then_some(hole_end))
    }

    /// The unit of extents in bytes.
    fn extent_unit(&self) -> u64 {
        STAT_BLOCK.max(self.block_sizes.minimum().into())
    }

    /// Searches the file for the data or the hole at `offset`, which ends at `end` at the latest.
    pub(super) fn search(&self, offset: u64, end: u64) -> io::Result<Extent> {
        let so_far = self.holes.so_far();
        if let Some(hole_end) = self.hole_end(offset, end)? {
            return Ok(hole(offset..hole_end));
        }
        // If there was a hole up to the data, it was too short to be reported.
        let start = host::seek_data(&self.file, offset)?.unwrap_or(offset);
        let data_end = match host::seek_hole(&self.file, start)? {
            // At least something, even if it has just become a hole.
            Some(hole) => hole.max(offset + 1).next_multiple_of(self.extent_unit()),
            None => end,
        };
        self.holes.found(offset..data_end, so_far);
        Ok(data(offset..data_end.min(end)))
    }

    /// Looks at a few places of the file for the data or the hole at `offset`, which ends at `end`
    /// at the latest.
    pub(super) fn look(&self, offset: u64, end: u64) -> io::Result<Extent> {
        if let Some(hole_end) = self.hole_end(offset, end)? {
            return Ok(hole(offset..hole_end));
        }
        let stride = ((end - offset) / LOOKS)
            .next_multiple_of(STRIDE)
            .max(STRIDE);
        let mut at = offset - offset % STRIDE + stride;
        while at < end && self.hole_end(at, end)?.is_none() {
            at += stride;
        }
        Ok(data(offset..at.min(end)))
    }

    /// The extent at `offset`, from memory or else by a call to the system.
    pub(super) fn ask(
        &self,
        offset: u64,
        len: u64,
        look: fn(&Self, u64, u64) -> io::Result<Extent>,
    ) -> Result<Extent, Failure> {
        self.check_range(offset, len, Errno::Inval)?;
        let end = offset + len;
        if len == 0 || !self.holes.are_likely() {
            return Ok(data(offset..end));
        }
        if let Some(data_end) = self.holes.data_end(offset) {
            return Ok(data(offset..data_end.min(end)));
        }
        let found = self.seek.attempt(|| look(self, offset, end));
        let found = found.map_err(|error| failed_at(offset, &error))?;
        Ok(found.unwrap_or_else(|| data(offset..end)))
    }
}

fn hole(range: Range<u64>) -> Extent {
    Extent {
        len: range.end - range.start,
        status: Allocation::HOLE | Allocation::ZERO,
    }
}

const fn data(range: Range<u64>) -> Extent {
    Extent {
        len: range.end - range.start,
        status: 0,
    }
}
