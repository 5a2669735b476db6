//! The steps of negotiation, which a driver moves from one to the next.

use crate::Error;
use bytes::BytesMut;

/// A part of the negotiation: takes the peer's bytes until it becomes the next part.
///
/// A driver lends no buffers and makes no decisions. It repeats:
///
/// 1. write everything in `out` and flush,
/// 2. read into [`space`](Phase::space), at most that many bytes,
/// 3. hand the number of bytes read to [`filled`](Phase::filled).
///
/// The space never reaches past the message being read, so no later byte (of a TLS handshake or the
/// first reply) is taken by accident.
pub trait Phase: Sized {
    /// The end of this part of the negotiation.
    type Next;

    /// Where the peer's next bytes go. Never empty.
    fn space(&mut self) -> &mut [u8];

    /// Takes note that the first `n` bytes of [`space`](Phase::space) are filled, and appends
    /// its output to `out`.
    ///
    /// # Errors
    ///
    /// When the peer broke the protocol. The phase is gone and the transport is to be closed; `out`
    /// is to be dropped unsent.
    ///
    /// # Panics
    ///
    /// When `n` is larger than the space that was lent.
    fn filled(self, n: usize, out: &mut BytesMut) -> Result<Step<Self, Self::Next>, Error>;

    /// Takes bytes that are already there, for drivers that are handed completed buffers, for
    /// tests and for fuzzing. Stops at the end of the phase; the number of bytes used comes back
    /// with the step.
    ///
    /// # Errors
    ///
    /// Like [`filled`](Phase::filled).
    fn feed(
        mut self,
        bytes: &[u8],
        out: &mut BytesMut,
    ) -> Result<(usize, Step<Self, Self::Next>), Error> {
        let mut used = 0;
        while used < bytes.len() {
            let space = self.space();
            let n = space.len().min(bytes.len() - used);
            space[..n].copy_from_slice(&bytes[used..used + n]);
            used += n;
            match self.filled(n, out)? {
                Step::More(more) => self = more,
                Step::Done(next) => return Ok((used, Step::Done(next))),
            }
        }
        Ok((used, Step::More(self)))
    }
}

/// The outcome of a step of a [`Phase`].
#[derive(Debug)]
#[must_use]
pub enum Step<M, N> {
    /// It needs more bytes.
    More(M),
    /// It ended.
    Done(N),
}
