//! Collecting the bytes of one message, without trusting its announced length.

use alloc::vec::Vec;

/// Memory taken ahead of the bytes that fill it.
const STEP: usize = 4096;

/// Messages of no more bytes are kept in place: all headers, and most messages of a negotiation.
const SHORT: usize = 32;

/// Takes in a known number of bytes, and either keeps or drops them.
///
/// INVARIANT: never holds more than [`STEP`] bytes beyond the arrived ones.
#[derive(Clone)]
pub(crate) struct Gather {
    short: [u8; SHORT],
    /// Longer messages.
    long: Vec<u8>,
    filled: usize,
    wanted: usize,
    /// Bytes still to come that no request wants.
    dropped: usize,
}

impl Gather {
    pub(crate) const fn new(wanted: usize) -> Self {
        Self {
            short: [0; SHORT],
            long: Vec::new(),
            filled: 0,
            wanted,
            dropped: 0,
        }
    }

    /// Starts over with another message of `wanted` bytes.
    pub(crate) fn restart(&mut self, wanted: usize) {
        self.filled = 0;
        self.wanted = wanted;
        self.dropped = 0;
    }

    /// Keeps the bytes that are there and wants `more` behind them.
    pub(crate) fn extend(&mut self, more: usize) {
        let was_short = self.is_short();
        self.wanted += more;
        if was_short && !self.is_short() {
            self.long.clear();
            self.long.extend_from_slice(&self.short[..self.filled]);
        }
    }

    const fn is_short(&self) -> bool {
        self.wanted <= SHORT
    }

    /// Starts over, dropping the next `unwanted` bytes.
    pub(crate) fn discard(&mut self, unwanted: usize) {
        self.restart(0);
        self.dropped = unwanted;
    }

    /// Where the next bytes go; empty when all are there.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.dropped > 0 {
            let len = self.dropped.min(STEP);
            if self.long.len() < len {
                self.long.resize(len, 0);
            }
            return &mut self.long[..len];
        }
        if self.is_short() {
            return &mut self.short[self.filled..self.wanted];
        }
        let end = self.wanted.min(self.filled + STEP);
        if self.long.len() < end {
            self.long.resize(end, 0);
        }
        &mut self.long[self.filled..end]
    }

    /// Takes note of `n` more bytes. Returns whether all of them are there.
    pub(crate) fn filled(&mut self, n: usize) -> bool {
        if self.dropped > 0 {
            assert!(
                n <= self.dropped.min(STEP),
                "more bytes were filled than space was lent"
            );
            self.dropped -= n;
        } else {
            assert!(
                n <= self.wanted.min(self.filled + STEP) - self.filled,
                "more bytes were filled than space was lent"
            );
            self.filled += n;
        }
        self.is_complete()
    }

    pub(crate) const fn is_complete(&self) -> bool {
        self.dropped == 0 && self.filled == self.wanted
    }

    /// Whether nothing has arrived.
    pub(crate) const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The bytes that have arrived.
    pub(crate) fn bytes(&self) -> &[u8] {
        let bytes = if self.is_short() {
            &self.short[..]
        } else {
            &self.long
        };
        &bytes[..self.filled]
    }

    /// The bytes that have arrived, if they are exactly `N`.
    pub(crate) fn array<const N: usize>(&self) -> Option<&[u8; N]> {
        self.bytes().try_into().ok()
    }
}

impl core::fmt::Debug for Gather {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "Gather({} of {} bytes)",
            self.filled,
            self.wanted + self.dropped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn memory_grows_with_the_bytes_and_not_with_the_announced_length() {
        // H-002, H-027, H-043
        let mut gather = Gather::new(usize::MAX / 2);
        assert_eq!(gather.space().len(), STEP);
        assert!(!gather.filled(10));
        assert!(gather.long.capacity() <= 2 * STEP);
    }

    #[test]
    fn dropped_bytes_take_one_step_of_memory() {
        let mut gather = Gather::new(0);
        gather.discard(3 * STEP);
        for done in [false, false, true] {
            assert_eq!(gather.space().len(), STEP);
            assert_eq!(gather.filled(STEP), done);
        }
        assert_eq!(gather.long.len(), STEP);
    }

    #[test]
    fn a_message_is_extended_any_number_of_times() {
        let mut gather = Gather::new(4);
        let mut sent = Vec::new();
        for more in [0, SHORT - 4, 1, 1000, 1] {
            gather.extend(more);
            let space = gather.space();
            let next = u8::try_from(sent.len() % 251).unwrap();
            space.fill(next);
            let len = space.len();
            sent.resize(sent.len() + len, next);
            assert!(gather.filled(len));
            assert_eq!(gather.bytes(), sent);
        }
        gather.extend(5);
        let shown = format!("Gather({} of {} bytes)", sent.len(), sent.len() + 5);
        assert_eq!(format!("{gather:?}"), shown);
    }
}
