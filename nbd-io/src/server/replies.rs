//! Replies on their way out, many to a system call.

use super::buffers::Buffers;
use crate::{Piece, ReadData};
use bytes::{Buf, Bytes};
use nbd_proto::{
    Errno, Failure, Frame,
    meta::Extent,
    server::{Receipt, Reply, Transmission},
};
use std::{collections::VecDeque, fmt, io::IoSlice, sync::Arc};

/// The longest header of a message with data, in bytes.
const HEADER: usize = 40;

/// Data of reads up to this length is put between the headers, in bytes.
const INLINE: usize = 64 << 10;

/// The same where the headers will be copied once more.
const INLINE_ELSEWHERE: usize = 8 << 10;

/// Payloads that come as [`Bytes`] are copied up to this length, in bytes.
const COPIED: usize = 4 << 10;

/// Zeroes to send where all is zero, which need not be written anywhere before.
static ZEROES: [u8; 16 << 10] = [0; 16 << 10];

/// Fewer zeroes than this are copied, in bytes.
const COPIED_ZEROES: usize = 1 << 10;

/// Payloads in buffers of their own for which there is always room in the queue.
const KEPT_PAYLOADS: usize = 16;

/// Memory that is kept for headers and short data, in bytes.
const KEPT_INLINE: usize = 1 << 20;

/// Extents for which memory is kept.
const KEPT_EXTENTS: usize = 4 << 10;

/// Messages that wait to be sent, in order, and the memory for those to come.
///
/// [`execute`](super::execute) fills it; the writer asks for [`slices`](Self::slices), notes
/// the written bytes by [`advance`](Self::advance), and when all are written,
/// [retires](Self::retire) the requests that were answered. The memory is used again and again:
/// after a while nothing is allocated any more but long payloads.
///
/// Messages are whole: two of these can be written in turn by concurrent workers, once each is
/// complete.
pub struct Replies {
    /// Headers and short data from `start` to `end`; the rest is space.
    inline: Vec<u8>,
    start: usize,
    end: usize,
    /// Long data, each with the position in `inline` that it comes before.
    payloads: VecDeque<(usize, Payload)>,
    payload_len: usize,
    /// The part of it that takes up no memory.
    zero_len: usize,
    buffers: Arc<Buffers>,
    most_inline: usize,
    /// Data is being read into this before its header is known.
    staged: Option<Vec<u8>>,
    /// Length of the last data's header, which most likely is the next one's.
    header: usize,
    receipts: Vec<Receipt>,
    pub(super) extents: Vec<Extent>,
}

enum Payload {
    /// The part of a buffer that is not sent.
    Buffer {
        buffer: Vec<u8>,
        start: usize,
        end: usize,
    },
    Bytes(Bytes),
    /// So many, all from the same place.
    Zeroes(usize),
}

impl Payload {
    fn len(&self) -> usize {
        match self {
            Self::Buffer { start, end, .. } => end - start,
            Self::Bytes(bytes) => bytes.len(),
            Self::Zeroes(len) => *len,
        }
    }

    /// Its first bytes, in one piece.
    fn piece(&self) -> &[u8] {
        match self {
            Self::Buffer { buffer, start, end } => &buffer[*start..*end],
            Self::Bytes(bytes) => bytes,
            Self::Zeroes(len) => &ZEROES[..ZEROES.len().min(*len)],
        }
    }
}

impl Replies {
    /// Nothing to send, and no memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing to send; memory for long data is shared with others.
    pub(super) fn sharing(buffers: Arc<Buffers>) -> Self {
        Self {
            inline: Vec::new(),
            start: 0,
            end: 0,
            payloads: VecDeque::new(),
            payload_len: 0,
            zero_len: 0,
            buffers,
            most_inline: INLINE,
            staged: None,
            header: 0,
            receipts: Vec::new(),
            extents: Vec::new(),
        }
    }

    /// Like [`sharing`](Self::sharing), for replies that others [absorb](Self::absorb).
    pub(super) fn elsewhere(buffers: Arc<Buffers>) -> Self {
        Self {
            most_inline: INLINE_ELSEWHERE,
            ..Self::sharing(buffers)
        }
    }

    /// Appends all of `other`, which is empty afterwards.
    pub(super) fn absorb(&mut self, other: &mut Self) {
        let mut at = other.start;
        while let Some((position, payload)) = other.payloads.pop_front() {
            self.append(&other.inline[at..position]);
            at = position;
            self.payload_len += payload.len();
            self.payloads.push_back((self.end, payload));
        }
        self.append(&other.inline[at..other.end]);
        self.zero_len += other.zero_len;
        (other.payload_len, other.zero_len) = (0, 0);
        other.rewind();
        self.receipts.append(&mut other.receipts);
    }

    /// Whether everything was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end && self.payloads.is_empty()
    }

    /// Number of bytes to be written.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.end - self.start + self.payload_len
    }

    /// Number of those bytes that take up memory.
    pub(super) const fn memory(&self) -> usize {
        self.len() - self.zero_len
    }

    /// Appends the last message of a reply.
    pub fn push(&mut self, reply: Reply<Bytes>) {
        self.push_frame(reply.frame);
        self.receipts.push(reply.receipt);
    }

    /// Appends a message that others of its reply follow.
    pub(super) fn push_frame(&mut self, frame: Frame<Bytes>) {
        let (header, payload) = frame.into_parts();
        self.append(header.as_bytes());
        self.append_shared(payload);
    }

    /// Appends a message with data in pieces.
    pub(super) fn push_pieces(&mut self, header: &[u8], data: ReadData, receipt: Option<Receipt>) {
        self.receipts.extend(receipt);
        self.append(header);
        for piece in data {
            match piece {
                Piece::Data(bytes) => self.append_shared(bytes),
                Piece::Zeroes(len) => self.append_zeroes(len),
            }
        }
    }

    /// Space for `len` bytes of data, to be followed by [`commit`](Self::commit) or nothing. Fails
    /// with [`Errno::NoMem`].
    #[inline]
    pub(super) fn stage(&mut self, len: usize) -> Result<&mut [u8], Failure> {
        let needed = self.end + HEADER + len;
        if len > self.most_inline || needed > self.inline.len() || self.staged.is_some() {
            return self.stage_anew(len);
        }
        let at = self.end + self.header;
        Ok(&mut self.inline[at..at + len])
    }

    /// Like [`stage`](Self::stage), where there may not be such a space yet.
    #[cold]
    fn stage_anew(&mut self, len: usize) -> Result<&mut [u8], Failure> {
        self.unstage();
        if len > self.most_inline {
            let buffer = self.buffers.take(len).ok_or_else(no_memory)?;
            return Ok(&mut self.staged.insert(buffer)[..len]);
        }
        let needed = self.end + HEADER + len;
        if needed > self.inline.len() {
            let missing = rounded(needed) - self.inline.len();
            self.inline
                .try_reserve_exact(missing)
                .map_err(|_| no_memory())?;
            self.lengthen(needed);
        }
        self.stage(len)
    }

    /// Gives the space back.
    pub(super) fn unstage(&mut self) {
        if let Some(buffer) = self.staged.take() {
            self.buffers.keep(buffer);
        }
    }

    /// Appends a message with the first `len` staged bytes.
    #[inline]
    pub(super) fn commit(&mut self, header: &[u8], len: usize, receipt: Option<Receipt>) {
        self.receipts.extend(receipt);
        if self.staged.is_some() || header.len() != self.header {
            return self.commit_otherwise(header, len);
        }
        copy_header(&mut self.inline[self.end..], header);
        self.end += header.len() + len;
    }

    /// Like [`commit`](Self::commit), where data is in a buffer of its own or not where it has to be.
    #[cold]
    fn commit_otherwise(&mut self, header: &[u8], len: usize) {
        if let Some(buffer) = self.staged.take() {
            self.append(header);
            self.payload_len += len;
            let (start, end) = (0, len);
            let payload = Payload::Buffer { buffer, start, end };
            self.payloads.push_back((self.end, payload));
            return;
        }
        let at = self.end + self.header;
        self.inline
            .copy_within(at..at + len, self.end + header.len());
        self.header = header.len();
        copy_header(&mut self.inline[self.end..], header);
        self.end += header.len() + len;
    }

    /// Appends a message with `len` zeroes in place of the staged bytes.
    pub(super) fn commit_zeroes(&mut self, header: &[u8], len: usize, receipt: Option<Receipt>) {
        self.unstage();
        self.receipts.extend(receipt);
        self.append(header);
        self.append_zeroes(len);
    }

    fn append_shared(&mut self, bytes: Bytes) {
        if bytes.len() <= COPIED {
            return self.append(&bytes);
        }
        self.payload_len += bytes.len();
        self.payloads.push_back((self.end, Payload::Bytes(bytes)));
    }

    fn append_zeroes(&mut self, len: usize) {
        if len < COPIED_ZEROES {
            return self.append(&ZEROES[..len]);
        }
        self.payload_len += len;
        self.zero_len += len;
        self.payloads.push_back((self.end, Payload::Zeroes(len)));
    }

    /// All that is to be written, if it is in one piece.
    pub(super) fn contiguous(&self) -> Option<&[u8]> {
        self.payloads
            .is_empty()
            .then(|| &self.inline[self.start..self.end])
    }

    /// The next slices to write. Returns how many there are: 0 if there is nothing to write.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut add = |slice: &'a [u8]| {
            if !slice.is_empty() && count < slices.len() {
                slices[count] = IoSlice::new(slice);
                count += 1;
            }
            count < slices.len()
        };
        let mut at = self.start;
        for (position, payload) in &self.payloads {
            let mut goes_on = add(&self.inline[at..*position]);
            at = *position;
            let piece = payload.piece();
            let mut left = payload.len();
            // Zeroes are longer than the one piece that there is of them.
            while goes_on && left > 0 {
                let piece = &piece[..piece.len().min(left)];
                left -= piece.len();
                goes_on = add(piece);
            }
            if !goes_on {
                return count;
            }
        }
        add(&self.inline[at..self.end]);
        count
    }

    /// Takes note that the first `n` bytes were written.
    ///
    /// # Panics
    ///
    /// When there are not as many.
    pub fn advance(&mut self, mut n: usize) {
        if self.payloads.is_empty() && n == self.end - self.start {
            return self.rewind();
        }
        while n > 0 {
            match self.payloads.front_mut() {
                Some((position, payload)) if *position == self.start => {
                    let now = n.min(payload.len());
                    n -= now;
                    self.payload_len -= now;
                    match payload {
                        Payload::Buffer { start, .. } => *start += now,
                        Payload::Bytes(bytes) => bytes.advance(now),
                        Payload::Zeroes(len) => {
                            *len -= now;
                            self.zero_len -= now;
                        }
                    }
                    if payload.len() == 0
                        && let Some((_, Payload::Buffer { buffer, .. })) = self.payloads.pop_front()
                    {
                        self.buffers.keep(buffer);
                    }
                }
                next => {
                    let until = next.map_or(self.end, |(position, _)| *position);
                    let now = n.min(until - self.start);
                    assert!(now > 0, "more was written than there is");
                    self.start += now;
                    n -= now;
                }
            }
        }
        if self.is_empty() {
            self.rewind();
        }
    }

    /// Takes note of the requests that were answered, if everything was written.
    pub fn retire(&mut self, transmission: &mut Transmission) {
        if self.is_empty() {
            for receipt in self.receipts.drain(..) {
                transmission.retire(receipt);
            }
        }
    }

    /// Gives up memory beyond the need of a few small requests.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            self.inline = Vec::new();
            self.payloads.shrink_to(KEPT_PAYLOADS);
        }
    }

    #[inline]
    fn append(&mut self, bytes: &[u8]) {
        let needed = self.end + bytes.len();
        if needed > self.inline.len() {
            self.lengthen(needed);
        }
        copy_header(&mut self.inline[self.end..], bytes);
        self.end = needed;
    }

    /// Begins anew with the memory for headers and short data, of which nothing is to be written.
    fn rewind(&mut self) {
        (self.start, self.end) = (0, 0);
        if self.inline.len() > KEPT_INLINE {
            self.inline = Vec::new();
            self.payloads.shrink_to(KEPT_PAYLOADS);
        }
    }

    /// Makes sure that the memory for headers and short data is at least so long.
    #[cold]
    fn lengthen(&mut self, needed: usize) {
        self.inline.resize(rounded(needed), 0);
    }

    /// Empties the list of extents, after a long one with its memory.
    pub(super) fn forget_extents(&mut self) {
        self.extents.clear();
        self.extents.shrink_to(KEPT_EXTENTS);
    }
}

/// Length of the memory for headers and short data where so much is needed.
fn rounded(needed: usize) -> usize {
    needed.next_power_of_two().max(4 << 10)
}

/// Puts a header to where it is to be. Simple replies have headers of 16 bytes, for which this is one
/// instruction.
#[inline]
fn copy_header(to: &mut [u8], header: &[u8]) {
    match (to.first_chunk_mut::<16>(), <[u8; 16]>::try_from(header)) {
        (Some(to), Ok(header)) => *to = header,
        _ => to[..header.len()].copy_from_slice(header),
    }
}

/// The answer to a client when there is no memory for its request.
pub(super) fn no_memory() -> Failure {
    Failure {
        message: "the server has no memory for this at the moment".into(),
        ..Errno::NoMem.into()
    }
}

impl Default for Replies {
    fn default() -> Self {
        Self::sharing(Arc::default())
    }
}

impl fmt::Debug for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replies")
            .field("len", &self.len())
            .field("answered", &self.receipts.len())
            .finish_non_exhaustive()
    }
}
