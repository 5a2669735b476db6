//! The place for the payload of a read.

use super::{Spare, Spill};
use bytes::BytesMut;

/// Memory that holds the payload of a read.
pub trait Buffer: AsMut<[u8]> {
    /// So many zeroes.
    fn zeroed(len: usize) -> Self;

    /// A copy of these bytes.
    fn copy_of(bytes: &[u8]) -> Self;
}

impl Buffer for Vec<u8> {
    fn zeroed(len: usize) -> Self {
        vec![0; len]
    }

    fn copy_of(bytes: &[u8]) -> Self {
        bytes.to_vec()
    }
}

impl Buffer for BytesMut {
    fn zeroed(len: usize) -> Self {
        Self::zeroed(len)
    }

    fn copy_of(bytes: &[u8]) -> Self {
        bytes.into()
    }
}

/// The place for the payload of a read.
#[derive(Debug, Default)]
pub enum Sink<B> {
    /// There is none, or it is thrown away.
    #[default]
    None,
    /// To a buffer of this length that is allocated when the first of it comes, so that a request in
    /// flight holds no memory.
    New(usize),
    /// To a buffer that was handed over, or allocated.
    Owned(B),
    /// To the owner's own buffer, from this position on. Only the owner's thread may touch it, so
    /// that others put aside bytes that they receive of it.
    Lent {
        /// Offset in the owner's buffer, in bytes.
        at: usize,
        /// Bytes of it that other threads have received.
        spill: Option<Box<Spill>>,
    },
}

impl<B> Sink<B> {
    /// The part of the owner's buffer that starts here.
    #[must_use]
    pub const fn lent(at: usize) -> Self {
        Self::Lent { at, spill: None }
    }

    /// The buffer that was handed over, or allocated.
    #[must_use]
    pub fn into_owned(self) -> Option<B> {
        match self {
            Self::Owned(buffer) => Some(buffer),
            Self::None | Self::New(_) | Self::Lent { .. } => None,
        }
    }
}

impl<B: Buffer> Sink<B> {
    /// Allocates the buffer if it is still to be. Returns whether it was, and is all zero.
    pub(super) fn allocate(&mut self, spare: Option<&Spare<B>>) -> bool {
        let Self::New(len) = *self else {
            return false;
        };
        let spare = spare.and_then(|spare| spare.take(len));
        let is_zero = spare.is_none();
        *self = Self::Owned(spare.unwrap_or_else(|| B::zeroed(len)));
        is_zero
    }

    /// Allocates the buffer if a payload is all that goes there, with it. Returns whether it is.
    #[inline(always)]
    pub(super) fn take(&mut self, payload: &[u8]) -> bool {
        let is_whole = matches!(*self, Self::New(len) if len == payload.len());
        if is_whole {
            *self = Self::Owned(B::copy_of(payload));
        }
        is_whole
    }
}
