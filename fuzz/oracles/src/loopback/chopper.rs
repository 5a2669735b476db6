//! A connection that delivers bytes in pieces of any length.

use bytes::{Buf, BytesMut};
use nbd_proto::{Phase, Step};

/// Cuts streams of bytes into pieces.
#[derive(Debug)]
pub(super) struct Chopper<'a> {
    sizes: &'a [u8],
    turn: usize,
}

impl<'a> Chopper<'a> {
    /// Everything at once where there are no `sizes`.
    pub(super) const fn new(sizes: &'a [u8]) -> Self {
        Self { sizes, turn: 0 }
    }

    /// The number of bytes to deliver next, and whether they are in a buffer of their own.
    pub(super) fn next(&mut self, there: usize) -> (usize, bool) {
        self.turn += 1;
        let size = match self.sizes {
            [] => there,
            sizes => match sizes[self.turn % sizes.len()] {
                byte @ ..0x80 => 1 + usize::from(byte),
                byte => 64 * usize::from(byte - 0x7f),
            },
        };
        (size.min(there), !self.turn.is_multiple_of(3))
    }

    /// Delivers a piece of `from` to a phase.
    pub(super) fn deliver<P: Phase>(
        &mut self,
        mut phase: P,
        from: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Step<P, P::Next> {
        let (n, feed) = self.next(from.len());
        let (used, step) = if feed {
            phase
                .feed(&from[..n], out)
                .expect("both sides obey the protocol")
        } else {
            let space = phase.space();
            let n = n.min(space.len());
            space[..n].copy_from_slice(&from[..n]);
            (
                n,
                phase.filled(n, out).expect("both sides obey the protocol"),
            )
        };
        from.advance(used);
        step
    }
}
