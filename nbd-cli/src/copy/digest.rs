//! SHA-256 of a disk.

use crate::work::cut;
use sha2::{Digest as _, Sha256};
use std::{fmt::Write, ops::Range, sync::LazyLock};

/// Hashed in place of zeroes that were not read.
pub(super) static ZEROES: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; 64 << 10]);

/// A digest of all bytes of a disk, in order.
#[derive(Debug, Default)]
pub(super) struct Digest(Sha256);

impl Digest {
    pub(super) fn add(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    pub(super) fn add_zeroes(&mut self, range: &Range<u64>) {
        for piece in cut(range.clone(), ZEROES.len() as u64) {
            self.add(zeroes_of(&piece));
        }
    }

    /// In hexadecimal digits.
    pub(super) fn hex(&self) -> String {
        let digest = self.0.clone().finalize();
        digest.iter().fold(String::new(), |mut text, byte| {
            // A string takes everything.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// Zeroes of the length of a range, which is not longer than there are.
pub(super) fn zeroes_of(range: &Range<u64>) -> &'static [u8] {
    let len = usize::try_from(range.end - range.start).unwrap_or(ZEROES.len());
    &ZEROES[..len]
}
