//! The content of a sector: the number of the write that made it, by which it is recognised.

use std::ops::Range;

/// The bytes of a sector, the unit in which the oracle thinks.
pub const SECTOR: usize = 512;

/// The write that a sector holds; [`ZERO`] if it is all zero.
pub type Value = u64;

/// A sector of zeroes.
pub const ZERO: Value = 0;

/// A sector of which a block status says nothing.
pub const UNKNOWN: Value = Value::MAX - 1;

/// The sectors of a range of bytes.
#[must_use]
pub const fn sectors(offset: u64, len: u64) -> Range<u64> {
    offset / SECTOR as u64..(offset + len) / SECTOR as u64
}

/// Fills a sector.
pub fn encode(value: Value, sector: u64, buf: &mut [u8]) {
    if value == ZERO {
        return buf.fill(0);
    }
    let words = [value, sector].map(u64::to_le_bytes);
    for (word, bytes) in buf.chunks_mut(8).zip(words.iter().cycle()) {
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// The content of a sector; `None` if no write has made it.
#[must_use]
pub fn decode(sector: u64, bytes: &[u8]) -> Option<Value> {
    let value = Value::from_le_bytes(bytes.first_chunk().copied()?);
    let mut expected = [0; SECTOR];
    encode(value, sector, &mut expected);
    (bytes == expected).then_some(value)
}
