//! Zeroes in data.

use std::ops::Range;

/// Number of bytes that are looked at first: most blocks that are not zero show it at once.
const FIRST_BYTES: usize = 16;

/// Number of bytes that are looked at without a branch between them.
const VECTORS: usize = 256;

/// Whether all bytes are zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (first, rest) = data.split_at(data.len().min(FIRST_BYTES));
    if first.iter().any(|byte| *byte != 0) {
        return false;
    }
    // In blocks that fit into vector registers, without a branch in them.
    let mut blocks = rest.chunks_exact(VECTORS);
    let any = |block: &[u8]| block.iter().fold(0, |any, byte| any | byte);
    blocks.by_ref().all(|block| any(block) == 0) && any(blocks.remainder()) == 0
}

/// Whether all bytes are equal. `==` calls `memcmp`, and that of musl looks at one byte after the other.
pub(crate) fn is_same(a: &[u8], b: &[u8]) -> bool {
    let (mut blocks, mut others) = (a.chunks_exact(VECTORS), b.chunks_exact(VECTORS));
    let differ = |a: &[u8], b: &[u8]| a.iter().zip(b).fold(0, |any, (a, b)| any | (a ^ b)) != 0;
    a.len() == b.len()
        && blocks
            .by_ref()
            .zip(others.by_ref())
            .all(|(a, b)| !differ(a, b))
        && !differ(blocks.remainder(), others.remainder())
}

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
    fn one_byte_makes_data_of_a_block() {
        for len in [0, 1, 15, 16, 17, 255, 256, 300, 4096, 5000] {
            let mut data = vec![0; len];
            assert!(is_zero(&data), "{len}");
            for at in (0..len).step_by(7).chain(len.checked_sub(1)) {
                data[at] = 1;
                assert!(!is_zero(&data), "{at} of {len}");
                data[at] = 0;
            }
        }
    }

    #[test]
    fn one_byte_makes_a_difference() {
        for len in [0, 1, 255, 256, 300, 5000] {
            let (a, mut b) = (vec![7; len], vec![7; len]);
            assert!(is_same(&a, &b), "{len}");
            for at in (0..len).step_by(7).chain(len.checked_sub(1)) {
                b[at] = 8;
                assert!(!is_same(&a, &b), "{at} of {len}");
                b[at] = 7;
            }
            assert!(!is_same(&a, &[&b[..], &[7]].concat()), "{len}");
        }
    }

    #[test]
    fn zeroes_are_found_in_blocks_of_the_disk() {
        let mut data = [0; 40];
        data[9] = 1;
        let runs: Vec<_> = runs(&data, 4, 8).collect();
        // Blocks of the disk begin at 8, 16, ...
        assert_eq!(runs, [(0..4, true), (4..12, false), (12..40, true)]);
    }
}
