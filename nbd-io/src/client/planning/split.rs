//! Requests of any length at any place, cut to the longest that one request may be.

/// A part of a larger request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts, in bytes from the start of the export.
    pub offset: u64,
    /// Its length in bytes; never 0.
    pub len: u64,
}

/// Cuts `len` bytes at `offset` into pieces of at most `max` bytes.
///
/// Every piece but the first starts at a multiple of `preferred`, if `max` is at least that large,
/// because servers work in such blocks.
pub fn split(
    offset: u64,
    len: u64,
    max: u64,
    preferred: u64,
) -> impl Iterator<Item = Piece> + Clone {
    let max = max.max(1);
    let mut next = offset;
    let mut left = len;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let mut now = left.min(max);
        if now < left {
            let over = (next + now).checked_rem(preferred).unwrap_or(0);
            if over < now {
                now -= over;
            }
        }
        let piece = Piece {
            offset: next,
            len: now,
        };
        next += now;
        left -= now;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_end_at_multiples_of_the_preferred_size() {
        // C-119, C-122, C-130
        let pieces: Vec<_> = split(1000, 20_000, 8192, 4096).collect();
        assert_eq!(
            pieces,
            [
                Piece {
                    offset: 1000,
                    len: 7192
                },
                Piece {
                    offset: 8192,
                    len: 8192
                },
                Piece {
                    offset: 16_384,
                    len: 4616
                },
            ]
        );
        let count = split(0, 33_554_433, 1 << 25, 4096).count();
        assert_eq!(count, 2, "one byte more than a request may have takes two");
    }

    proptest! {
        #[test]
        fn pieces_cover_the_request_exactly(
            offset in 0_u64..1 << 40,
            len in 0_u64..1 << 20,
            max in 1_u64..1 << 16,
            shift in 0_u32..17,
        ) {
            prop_assume!(len / max < 10_000);
            let mut at = offset;
            for piece in split(offset, len, max, 1 << shift) {
                prop_assert_eq!(piece.offset, at);
                prop_assert!((1..=max).contains(&piece.len));
                at += piece.len;
            }
            prop_assert_eq!(at, offset + len);
        }
    }
}
