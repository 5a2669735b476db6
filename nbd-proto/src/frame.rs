//! The output of transmission: a small header on the stack and the payload as it was given.

use crate::wire::MAX_HEADER;
use bytes::{Buf, BufMut, Bytes};
use core::fmt;

/// The bytes of a header, at most [`MAX_HEADER`] of them, without an allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    len: u8,
}

impl Header {
    #[inline]
    pub(crate) fn new(write: impl FnOnce(&mut &mut [u8])) -> Self {
        let mut bytes = [0; MAX_HEADER];
        let mut rest = &mut bytes[..];
        write(&mut rest);
        let left = rest.remaining_mut();
        let len = u8::try_from(MAX_HEADER - left).expect("at most MAX_HEADER bytes fit");
        Self { bytes, len }
    }

    /// The bytes to send.
    #[inline]
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Header({:02x?})", self.as_bytes())
    }
}

/// A message without a payload.
pub type Bare = Frame<&'static [u8]>;

/// One message ready to be sent: a [`Header`] and a payload that is neither copied nor looked at.
///
/// As a [`Buf`] it is the header's bytes followed by the payload's, and
/// [`Buf::chunks_vectored`] lends both for one vectored write.
#[derive(Clone, PartialEq, Eq)]
#[must_use = "the peer waits for this message"]
pub struct Frame<P> {
    header: Header,
    sent: u8,
    payload: P,
}

impl Bare {
    #[inline]
    pub(crate) const fn bare(header: Header) -> Self {
        Self {
            header,
            sent: 0,
            payload: &[],
        }
    }
}

/// For queues that keep messages with and without a payload.
impl From<Bare> for Frame<Bytes> {
    fn from(bare: Bare) -> Self {
        Self {
            header: bare.header,
            sent: bare.sent,
            payload: Bytes::from_static(bare.payload),
        }
    }
}

impl<P> Frame<P> {
    #[inline]
    pub(crate) const fn new(header: Header, payload: P) -> Self {
        Self {
            header,
            sent: 0,
            payload,
        }
    }

    /// The part of the header that has not been sent.
    #[inline]
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header.as_bytes()[usize::from(self.sent)..]
    }

    /// The payload.
    #[must_use]
    pub const fn payload(&self) -> &P {
        &self.payload
    }

    /// The whole header and the payload, apart.
    #[inline]
    #[must_use]
    pub fn into_parts(self) -> (Header, P) {
        (self.header, self.payload)
    }
}

impl<P: Buf> Buf for Frame<P> {
    fn remaining(&self) -> usize {
        self.header().len() + self.payload.remaining()
    }

    fn chunk(&self) -> &[u8] {
        if self.header().is_empty() {
            self.payload.chunk()
        } else {
            self.header()
        }
    }

    fn advance(&mut self, n: usize) {
        let of_header = n.min(self.header().len());
        self.sent += u8::try_from(of_header).expect("a header has at most MAX_HEADER bytes");
        if n > of_header {
            self.payload.advance(n - of_header);
        }
    }

    #[cfg(feature = "std")]
    fn chunks_vectored<'a>(&'a self, dst: &mut [std::io::IoSlice<'a>]) -> usize {
        let header = self.header();
        match dst.split_first_mut() {
            None => 0,
            Some((first, rest)) if !header.is_empty() => {
                *first = std::io::IoSlice::new(header);
                1 + self.payload.chunks_vectored(rest)
            }
            Some(_) => self.payload.chunks_vectored(dst),
        }
    }
}

impl<P: Buf> fmt::Debug for Frame<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("header", &self.header)
            .field("payload_len", &self.payload.remaining())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_frame_is_its_header_and_then_its_payload() {
        let mut frame = Frame::new(Header::new(|out| out.put_u16(0x0102)), &b"abc"[..]);
        assert_eq!(frame.remaining(), 5);
        frame.advance(1);
        assert_eq!(frame.chunk(), [2]);
        let mut rest = Vec::new();
        rest.put(frame);
        assert_eq!(rest, [2, b'a', b'b', b'c']);
    }

    #[test]
    fn a_bare_frame_can_wait_beside_others() {
        let mut bare = Bare::bare(Header::new(|out| out.put_u16(0x0102)));
        bare.advance(1);
        let waiting: Frame<Bytes> = bare.into();
        assert_eq!((waiting.remaining(), waiting.chunk()), (1, &[2][..]));
    }

    #[cfg(feature = "std")]
    #[test]
    fn a_frame_is_written_by_one_vectored_write() {
        let mut frame = Frame::new(Header::new(|out| out.put_u16(0x0102)), &b"abc"[..]);
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        assert_eq!(frame.chunks_vectored(&mut slices), 2);
        assert_eq!((&*slices[0], &*slices[1]), (&[1, 2][..], &b"abc"[..]));
        frame.advance(3);
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        assert_eq!(frame.chunks_vectored(&mut slices), 1);
        assert_eq!(&*slices[0], b"bc");
    }

    #[test]
    fn a_frame_is_shown_by_its_header_and_the_length_of_its_payload() {
        let frame = Frame::new(Header::new(|out| out.put_u16(0x01ab)), &b"abc"[..]);
        assert_eq!(frame.header.as_ref(), [1, 0xab]);
        assert_eq!(
            alloc::format!("{frame:?}"),
            "Frame { header: Header([01, ab]), payload_len: 3 }"
        );
    }
}
