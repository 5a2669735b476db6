//! Zeroes in data.

use std::ops::Range;

/// Bytes that are compared at once. Arrays as short as this are compared by instructions for vectors,
/// also where code is optimised for size and loops over bytes are not.
const VECTORS: usize = 32;

/// Whether all bytes are zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (blocks, rest) = data.as_chunks::<VECTORS>();
    blocks.iter().all(|block| *block == [0; VECTORS]) && rest.iter().all(|byte| *byte == 0)
}

/// Whether all bytes are equal. `==` calls `memcmp`, and that of musl looks at one byte after the other.
pub(crate) fn is_same(a: &[u8], b: &[u8]) -> bool {
    let ((blocks, rest), (others, other_rest)) =
        (a.as_chunks::<VECTORS>(), b.as_chunks::<VECTORS>());
    a.len() == b.len() && blocks.iter().zip(others).all(|(a, b)| a == b) && rest == other_rest
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
