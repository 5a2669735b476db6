//! A part of a disk, as commands take it.

use crate::{
    outcome::{Error, Result},
    size,
};
use clap::Args;
use nbd_tokio::ExportInfo;
use std::{fmt, ops::Range};

/// The end of an export that no request can reach, because it is less than a block. Servers should not
/// have one, but some do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreachable {
    /// The size of the export, in bytes.
    size: u64,
    /// The size of a block, in bytes.
    block: u32,
}

impl Unreachable {
    /// That of an export.
    pub(crate) fn of(export: &ExportInfo) -> Option<Self> {
        (export.reachable() < export.size).then(|| Self {
            size: export.size,
            block: export.blocks().minimum(),
        })
    }

    /// Its length in bytes.
    pub(crate) fn len(self) -> u64 {
        self.size % u64::from(self.block)
    }

    /// Offset of its first byte.
    fn start(self) -> u64 {
        self.size - self.len()
    }

    /// The part of a range before it, and an error if there is another part.
    pub(crate) fn cut(self, range: Range<u64>) -> (Range<u64>, Result<()>) {
        let start = self.start();
        let cut = range.start.min(start)..range.end.min(start);
        let is_whole = cut == range;
        (cut, if is_whole { Ok(()) } else { Err(self.into()) })
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, block } = self;
        write!(
            f,
            "the last {} of {size} bytes, from {} on, cannot be reached: the server takes requests \
             for whole blocks of {block} bytes only",
            self.len(),
            self.start()
        )
    }
}

impl From<Unreachable> for Error {
    fn from(missing: Unreachable) -> Self {
        Self::new(missing.to_string())
    }
}

/// The part of a range that requests can reach, and an error if that is not all of it.
pub(crate) fn reach(export: &ExportInfo, range: Range<u64>) -> (Range<u64>, Result<()>) {
    match Unreachable::of(export) {
        Some(missing) => missing.cut(range),
        None => (range, Ok(())),
    }
}

/// The part of a disk that a command is about; all of it by default.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Begin at this byte.
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = size::parse)]
    offset: u64,
    /// End after so many bytes.
    ///
    /// Instead of at the end of the disk.
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    length: Option<u64>,
}

impl Part {
    /// The range of bytes on a disk of `size` bytes.
    pub(crate) fn range(&self, size: u64) -> Result<Range<u64>> {
        let Self { offset, length } = *self;
        if offset > size {
            return Err(Error::new(format!(
                "expected an --offset within the disk's {size} bytes, got {offset}"
            )));
        }
        let length = length.unwrap_or(size - offset);
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(offset..end),
            _ => Err(Error::new(format!(
                "expected a --length of at most {} bytes, up to the end of the disk, got {length}",
                size - offset
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_before_the_bytes_that_cannot_be_reached() {
        let missing = Unreachable {
            size: 1000,
            block: 512,
        };
        assert_eq!(missing.len(), 488);
        for (range, cut, is_whole) in [
            (0..512, 0..512, true),
            (512..512, 512..512, true),
            (0..1000, 0..512, false),
            (600..700, 512..512, false),
        ] {
            let (range, all) = missing.cut(range);
            assert_eq!((range, all.is_ok()), (cut, is_whole));
        }
    }

    #[test]
    fn a_part_lies_within_the_disk() {
        let part = |offset, length| Part { offset, length }.range(100).ok();
        assert_eq!(part(0, None), Some(0..100));
        assert_eq!(part(40, None), Some(40..100));
        assert_eq!(part(100, Some(0)), Some(100..100));
        assert_eq!(part(10, Some(90)), Some(10..100));
        assert_eq!(part(10, Some(91)), None);
        assert_eq!(part(101, None), None);
        assert_eq!(part(1, Some(u64::MAX)), None);
    }
}
