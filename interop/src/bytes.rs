//! The test data, and comparisons with it.

/// Bytes of a kibibyte.
pub const KIB: u64 = 1 << 10;

/// Bytes of a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Bytes that are at no two places the same, and the same for the same seed.
///
/// # Panics
///
/// When `len` is more than a buffer can have.
pub fn pattern(seed: u64, len: u64) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    // Computing all of them would take most of the time of tests that are not optimised.
    let block: Vec<u8> = (0..BLOCK / 8).flat_map(|_| next()).collect();
    let len = usize::try_from(len).expect("bytes of a test fit into memory");
    let mut bytes = Vec::with_capacity(len + BLOCK);
    while bytes.len() < len {
        let start = bytes.len();
        bytes.extend_from_slice(&block);
        bytes[start..start + 8].copy_from_slice(&next());
    }
    bytes.truncate(len);
    bytes
}

/// Checks that bytes read from `offset` on are the expected ones, without printing megabytes if
/// they are not.
///
/// # Panics
///
/// When they are not.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8], offset: u64) {
    if found != expected {
        let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
        let (found, expected) = (found.len(), expected.len());
        panic!("of {found} bytes at {offset}, expected {expected}, the first wrong is {wrong:?}");
    }
}
