//! The delivery of a peer's bytes: the outcome must be the same for any delivery.

use bytes::BytesMut;
use core::fmt;
use nbd_proto::{Error, Phase, Step};

/// The most space that a machine may lend at once, in bytes.
pub(crate) const MAX_SPACE: usize = 4096;

/// A way for bytes to arrive.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Delivery<'a> {
    /// All in one buffer.
    Whole,
    /// In buffers of these lengths, over and over.
    Fed(&'a [u8]),
    /// Into the space that is lent, by these lengths.
    Lent(&'a [u8]),
    /// Both ways in turn.
    Mixed(&'a [u8]),
}

/// Plays the same with every delivery, and returns the outcome, which is always the same.
pub(crate) fn always<T: PartialEq + fmt::Debug>(
    pattern: &[u8],
    play: impl Fn(Delivery<'_>) -> T,
) -> T {
    let expected = play(Delivery::Whole);
    for delivery in [
        Delivery::Fed(pattern),
        Delivery::Lent(pattern),
        Delivery::Mixed(pattern),
        Delivery::Lent(&[u8::MAX]),
    ] {
        assert_eq!(play(delivery), expected, "{delivery:?}");
    }
    expected
}

/// Some of the bytes that have not been read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece<'a> {
    /// In a buffer of their own.
    Fed(&'a [u8]),
    /// To be copied into lent space, as far as it goes.
    Lent(&'a [u8]),
}

/// A peer's bytes on their way to a machine, and the machine's bytes.
#[derive(Debug)]
pub(crate) struct Wire<'a> {
    input: &'a [u8],
    used: usize,
    delivery: Delivery<'a>,
    turn: usize,
    /// The bytes that the machine sends.
    pub(crate) out: BytesMut,
}

impl<'a> Wire<'a> {
    pub(crate) fn new(input: &'a [u8], delivery: Delivery<'a>) -> Self {
        Self {
            input,
            used: 0,
            delivery,
            turn: 0,
            out: BytesMut::new(),
        }
    }

    /// The number of bytes read.
    pub(crate) const fn used(&self) -> usize {
        self.used
    }

    /// The unread bytes.
    pub(crate) fn left(&self) -> &'a [u8] {
        &self.input[self.used..]
    }

    /// The next piece, unless there is none.
    pub(crate) fn piece(&mut self) -> Option<Piece<'a>> {
        let left = self.left();
        if left.is_empty() {
            return None;
        }
        self.turn += 1;
        let (pattern, fed) = match self.delivery {
            Delivery::Whole => return Some(Piece::Fed(left)),
            Delivery::Fed(pattern) => (pattern, true),
            Delivery::Lent(pattern) => (pattern, false),
            Delivery::Mixed(pattern) => (pattern, !self.turn.is_multiple_of(3)),
        };
        let size = match pattern {
            [] => 1,
            sizes => size(sizes[self.turn % sizes.len()]),
        };
        let piece = &left[..size.min(left.len())];
        Some(if fed {
            Piece::Fed(piece)
        } else {
            Piece::Lent(piece)
        })
    }

    /// Takes note that the first bytes of a piece were read.
    pub(crate) fn consume(&mut self, n: usize) {
        self.used += n;
    }

    /// Runs a phase to its end, or as far as the bytes go.
    pub(crate) fn drive<P: Phase>(&mut self, mut phase: P) -> Result<Result<P::Next, P>, Error> {
        loop {
            let lent = phase.space().len();
            assert!((1..=MAX_SPACE).contains(&lent), "{lent} bytes are lent");
            let step = match self.piece() {
                None => return Ok(Err(phase)),
                Some(Piece::Fed(bytes)) => {
                    let (used, step) = phase.feed(bytes, &mut self.out)?;
                    let all = used == bytes.len();
                    assert!(all || matches!(step, Step::Done(_)), "bytes are left over");
                    self.consume(used);
                    step
                }
                Some(Piece::Lent(bytes)) => {
                    let n = bytes.len().min(lent);
                    phase.space()[..n].copy_from_slice(&bytes[..n]);
                    self.consume(n);
                    phase.filled(n, &mut self.out)?
                }
            };
            match step {
                Step::More(more) => phase = more,
                Step::Done(next) => return Ok(Ok(next)),
            }
        }
    }
}

/// Short lengths mostly, and some that are longer than any header.
fn size(byte: u8) -> usize {
    match byte {
        0..=0xdf => 1 + usize::from(byte) % 96,
        _ => usize::from(byte - 0xdf) * 256,
    }
}
