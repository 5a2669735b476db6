//! The bytes of a read, as an asynchronous export hands them out.

use bytes::{Bytes, BytesMut};
use std::iter;

/// The bytes of a read in order: pieces that are sent from where they are, and runs of zeroes, which
/// need not be anywhere.
///
/// A piece is shared memory ([`Bytes`]): an export hands out a part of its cache, and a server writes
/// it to the socket without a copy, except of a few KiB. Zeroes are sent as holes where the client
/// takes them. A single piece takes up no memory beside its own.
///
/// ```
/// use bytes::Bytes;
/// use nbd_io::ReadData;
///
/// let block = Bytes::from(vec![1; 4096]);
/// let whole = ReadData::from(block.clone());
/// assert_eq!(whole.len(), 4096);
///
/// let mut parts = ReadData::new();
/// parts.push(block.slice(512..));
/// parts.push_zeroes(1 << 20);
/// parts.push(block.slice(..512));
/// assert_eq!((parts.len(), parts.pieces().count()), (4096 + (1 << 20), 3));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadData {
    first: Option<Piece>,
    rest: Vec<Piece>,
    len: usize,
    has_zeroes: bool,
}

/// A piece of [`ReadData`], which is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Data.
    Data(Bytes),
    /// So many zeroes.
    Zeroes(usize),
}

impl Piece {
    /// Its length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no piece is empty")]
    pub const fn len(&self) -> usize {
        match self {
            Self::Data(bytes) => bytes.len(),
            Self::Zeroes(len) => *len,
        }
    }
}

impl ReadData {
    /// No bytes yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            first: None,
            rest: Vec::new(),
            len: 0,
            has_zeroes: false,
        }
    }

    /// Nothing but zeroes.
    #[must_use]
    pub fn zeroes(len: usize) -> Self {
        let mut data = Self::new();
        data.push_zeroes(len);
        data
    }

    /// Appends data.
    pub fn push(&mut self, data: impl Into<Bytes>) {
        let data = data.into();
        if !data.is_empty() {
            self.push_piece(Piece::Data(data));
        }
    }

    /// Appends zeroes.
    pub fn push_zeroes(&mut self, len: usize) {
        if len == 0 {
            return;
        }
        self.has_zeroes = true;
        match self.rest.last_mut().or(self.first.as_mut()) {
            Some(Piece::Zeroes(last)) => {
                *last += len;
                self.len += len;
            }
            _ => self.push_piece(Piece::Zeroes(len)),
        }
    }

    fn push_piece(&mut self, piece: Piece) {
        self.len += piece.len();
        if self.first.is_none() {
            self.first = Some(piece);
        } else {
            self.rest.push(piece);
        }
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether some of them are known to be zero.
    pub(crate) const fn has_zeroes(&self) -> bool {
        self.has_zeroes
    }

    /// Whether all of them are known to be zero.
    pub(crate) fn is_all_zero(&self) -> bool {
        self.rest.is_empty() && !matches!(self.first, Some(Piece::Data(_)))
    }

    /// The pieces in order. Neighbours are not both zeroes.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.first.iter().chain(&self.rest)
    }

    /// Copies the bytes to a buffer of the same length.
    ///
    /// # Panics
    ///
    /// When it has another length.
    pub fn copy_to_slice(&self, mut buf: &mut [u8]) {
        assert_eq!(buf.len(), self.len, "the buffer is as long as the data");
        for piece in self.pieces() {
            let (part, rest) = buf.split_at_mut(piece.len());
            match piece {
                Piece::Data(bytes) => part.copy_from_slice(bytes),
                Piece::Zeroes(_) => part.fill(0),
            }
            buf = rest;
        }
    }
}

/// By pieces.
impl IntoIterator for ReadData {
    type Item = Piece;
    type IntoIter = iter::Chain<std::option::IntoIter<Piece>, std::vec::IntoIter<Piece>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.rest)
    }
}

impl From<Bytes> for ReadData {
    fn from(data: Bytes) -> Self {
        let mut pieces = Self::new();
        pieces.push(data);
        pieces
    }
}

impl From<BytesMut> for ReadData {
    fn from(data: BytesMut) -> Self {
        data.freeze().into()
    }
}

impl From<Vec<u8>> for ReadData {
    fn from(data: Vec<u8>) -> Self {
        Bytes::from(data).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_zeroes_are_one_piece_and_nothing_is_none() {
        let mut data = ReadData::new();
        data.push_zeroes(0);
        data.push(Bytes::new());
        assert!(data.is_empty() && data.is_all_zero() && data.pieces().next().is_none());
        data.push_zeroes(3);
        data.push_zeroes(4);
        assert!(data.is_all_zero() && data.has_zeroes());
        assert_eq!(data, ReadData::zeroes(7));
        data.push(&b"abc"[..]);
        data.push_zeroes(1);
        data.push_zeroes(1);
        assert!(!data.is_all_zero());
        let mut buf = [1; 12];
        data.copy_to_slice(&mut buf);
        assert_eq!(&buf, b"\0\0\0\0\0\0\0abc\0\0");
        let pieces: Vec<_> = data.into_iter().collect();
        assert_eq!(
            pieces,
            [
                Piece::Zeroes(7),
                Piece::Data(Bytes::from_static(b"abc")),
                Piece::Zeroes(2)
            ]
        );
        assert!(!ReadData::from(vec![1, 2]).has_zeroes());
    }
}
