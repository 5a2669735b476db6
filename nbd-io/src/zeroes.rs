//! Bytes that are zero, or the same.

/// Bytes that are compared at once. Arrays of up to this length are compared by instructions for
/// vectors, also in a program that is optimised for size as a whole, where loops over bytes are not.
const VECTORS: usize = 128;

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<VECTORS>();
    blocks.iter().all(|block| *block == [0; VECTORS]) && rest.iter().all(|byte| *byte == 0)
}

/// Whether all bytes are equal. `==` calls `memcmp`, and that of musl looks at one byte after the other.
#[must_use]
pub fn is_same(a: &[u8], b: &[u8]) -> bool {
    let ((blocks, rest), (others, other_rest)) =
        (a.as_chunks::<VECTORS>(), b.as_chunks::<VECTORS>());
    a.len() == b.len() && blocks.iter().zip(others).all(|(a, b)| a == b) && rest == other_rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_makes_data_of_zeroes() {
        for len in [0, 1, 15, 16, 17, 127, 128, 129, 255, 256, 300, 4096, 5000] {
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
        for len in [0, 1, 127, 128, 129, 255, 256, 300, 5000] {
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
}
