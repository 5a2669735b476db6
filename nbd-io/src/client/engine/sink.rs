//! The place for the payload of a read.

use super::Spill;
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
    /// Allocates the buffer, all zero, if it is still to be. Returns whether it was.
    pub(super) fn allocate(&mut self) -> bool {
        let Self::New(len) = *self else {
            return false;
        };
        *self = Self::Owned(B::zeroed(len));
        true
    }

    /// Allocates the buffer for a payload. Returns whether that is all of it and in its place.
    #[inline(always)]
    pub(super) fn take(&mut self, payload: &[u8]) -> bool {
        let Self::New(len) = *self else {
            return false;
        };
        let is_whole = payload.len() == len;
        if is_whole {
            *self = Self::Owned(B::copy_of(payload));
        } else {
            self.allocate();
        }
        is_whole
    }
}
