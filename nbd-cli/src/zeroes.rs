//! Zeroes in data.

pub(crate) use nbd_tokio::nbd_io::zeroes::{is_same, is_zero};
use std::ops::Range;

/// Cuts data that begins at `offset` of the disk into zeroes, in whole blocks of that size, and the
/// rest. A last block that is incomplete counts as a whole one.
pub(crate) fn runs(
    data: &[u8],
    offset: u64,
    block: u64,
) -> impl Iterator<Item = (Range<usize>, bool)> {
    alike(data.len(), offset, block, move |range| {
        is_zero(&data[range])
    })
}

/// Cuts `len` bytes that begin at `offset` of the disk into runs of blocks that are alike.
pub(crate) fn alike<T: PartialEq>(
    len: usize,
    offset: u64,
    block: u64,
    what: impl Fn(Range<usize>) -> T,
) -> impl Iterator<Item = (Range<usize>, T)> {
    let blocks = crate::work::cut(offset..offset + len as u64, block.max(1)).map(move |range| {
        let place = |at: u64| usize::try_from(at - offset).unwrap_or(len);
        let range = place(range.start)..place(range.end);
        let what = what(range.clone());
        (range, what)
    });
    let mut blocks = blocks.peekable();
    std::iter::from_fn(move || {
        let (mut run, what) = blocks.next()?;
        while let Some((next, _)) = blocks.next_if(|(_, other)| *other == what) {
            run.end = next.end;
        }
        Some((run, what))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_found_in_blocks_of_the_disk() {
        let mut data = [0; 40];
        data[9] = 1;
        let runs: Vec<_> = runs(&data, 4, 8).collect();
        // Blocks of the disk begin at 8, 16, ...
        assert_eq!(runs, [(0..4, true), (4..12, false), (12..40, true)]);
    }
}
