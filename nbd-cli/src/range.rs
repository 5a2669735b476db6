//! A part of a disk, as commands take it.

use crate::{
    outcome::{Error, Result},
    size,
};
use clap::Args;
use std::ops::Range;

/// The part of a disk that a command is about; all of it by default.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Begin at this byte.
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = size::parse)]
    offset: u64,
    /// End after so many bytes, instead of at the end of the disk.
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
