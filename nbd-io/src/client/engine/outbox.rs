//! Frames on their way out, many to a system call.

use bytes::{Buf, Bytes};
use nbd_proto::{Frame, Header, Misuse, client::Cookie};
use std::{collections::VecDeque, fmt, io::IoSlice};

/// Payloads up to this length are copied beside their header, in bytes.
const INLINE: usize = 512;

/// Limit of slices in one write.
const SLICES: usize = 128;

/// Number of slices that is enough for one request or two.
const FEW_SLICES: usize = 6;

/// Requests that wait to be written, in order.
#[derive(Default)]
pub struct Outbox {
    /// Headers and small payloads.
    inline: Vec<u8>,
    /// Number of bytes of `inline` that are written.
    written: usize,
    /// Large payloads, each with the position in `inline` that it comes before.
    payloads: VecDeque<(usize, Bytes)>,
}

impl Outbox {
    /// Whether everything was written.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.written == self.inline.len() && self.payloads.is_empty()
    }

    /// Appends a request without payload, or the header of one whose payload goes its own way.
    #[inline]
    pub fn push(&mut self, header: &[u8]) {
        if self.is_empty() {
            self.inline.clear();
            self.written = 0;
        }
        #[cfg(feature = "tracing")]
        crate::client::messages::request_sent(header);
        self.inline.extend_from_slice(header);
    }

    /// Appends a request that has no payload, if it makes sense.
    ///
    /// # Errors
    ///
    /// When it makes none.
    #[inline]
    pub fn push_bare<P>(
        &mut self,
        request: Result<(Cookie, Frame<P>), Misuse>,
    ) -> Result<Cookie, Misuse> {
        let (cookie, frame) = request?;
        self.push(frame.header());
        Ok(cookie)
    }

    /// Takes a request apart that its caller writes without the outbox.
    #[inline]
    pub fn pass_by<P>(frame: Frame<P>) -> (Header, P) {
        #[cfg(feature = "tracing")]
        crate::client::messages::request_sent(frame.header());
        frame.into_parts()
    }

    /// Appends a request and a copy of its payload.
    pub fn push_copied(&mut self, header: &[u8], payload: &[u8]) {
        self.push(header);
        self.inline.extend_from_slice(payload);
    }

    /// Appends a request with its payload, which is copied only if it is small.
    pub fn push_owned(&mut self, header: &[u8], payload: Bytes) {
        if payload.len() <= INLINE {
            return self.push_copied(header, &payload);
        }
        self.push(header);
        self.payloads.push_back((self.inline.len(), payload));
    }

    /// Lends the next slices to write, followed by `last` if there is room for all of them.
    #[inline]
    pub fn with_slices<R>(&self, last: &[u8], write: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        // A lone request would otherwise pay for the preparation of many slices.
        if self.payloads.is_empty() && last.is_empty() {
            write(&[IoSlice::new(&self.inline[self.written..])])
        } else if self.payloads.len() < FEW_SLICES / 2 {
            self.gather::<FEW_SLICES, R>(last, write)
        } else {
            self.gather::<SLICES, R>(last, write)
        }
    }

    fn gather<const N: usize, R>(&self, last: &[u8], write: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        let mut slices = [IoSlice::new(&[]); N];
        let mut count = 0;
        let mut at = self.written;
        for (position, payload) in &self.payloads {
            if count + 2 > N {
                return write(&slices[..count]);
            }
            if at < *position {
                slices[count] = IoSlice::new(&self.inline[at..*position]);
                at = *position;
                count += 1;
            }
            slices[count] = IoSlice::new(payload);
            count += 1;
        }
        for slice in [&self.inline[at..], last] {
            if !slice.is_empty() && count < N {
                slices[count] = IoSlice::new(slice);
                count += 1;
            }
        }
        write(&slices[..count])
    }

    /// Takes note of `n` written bytes. Returns how many of them were of `last`.
    #[inline]
    pub fn advance(&mut self, n: usize) -> usize {
        if !self.payloads.is_empty() {
            return self.advance_among_payloads(n);
        }
        let now = n.min(self.inline.len() - self.written);
        self.written += now;
        n - now
    }

    fn advance_among_payloads(&mut self, mut n: usize) -> usize {
        while n > 0 {
            match self.payloads.front_mut() {
                Some((position, payload)) if *position == self.written => {
                    let now = n.min(payload.len());
                    payload.advance(now);
                    n -= now;
                    if payload.is_empty() {
                        self.payloads.pop_front();
                    }
                }
                next => {
                    let end = next.map_or(self.inline.len(), |(position, _)| *position);
                    let now = n.min(end - self.written);
                    self.written += now;
                    n -= now;
                    if now == 0 {
                        return n;
                    }
                }
            }
        }
        0
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("inline_len", &(self.inline.len() - self.written))
            .field("payloads", &self.payloads.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_in_order_however_they_are_cut() {
        let big = Bytes::from(vec![b'x'; 600]);
        // An interpreter would take an hour for all of them.
        let steps = if cfg!(miri) { 13 } else { 1 };
        for step in (1..40).rev().step_by(steps) {
            let mut outbox = Outbox::default();
            outbox.push(b"one,");
            outbox.push_owned(b"two:", big.clone());
            outbox.push_owned(b"three:", big.clone());
            outbox.push_copied(b"four:", b"copied,");
            let last = b"last";
            let (mut written, mut of_last) = (Vec::new(), 0);
            loop {
                let bytes: Vec<u8> = outbox.with_slices(&last[of_last..], |slices| {
                    let bytes = slices.iter().flat_map(|slice| slice.iter());
                    bytes.take(step).copied().collect()
                });
                if bytes.is_empty() {
                    break;
                }
                written.extend_from_slice(&bytes);
                of_last += outbox.advance(bytes.len());
            }
            let x = "x".repeat(600);
            let expected = format!("one,two:{x}three:{x}four:copied,last");
            assert_eq!(String::from_utf8(written).unwrap(), expected);
            assert!(outbox.is_empty());
        }
    }

    #[test]
    fn only_small_payloads_are_copied_and_the_others_are_lent_many_at_once() {
        let big = Bytes::from(vec![b'x'; INLINE + 1]);
        let mut outbox = Outbox::default();
        outbox.push_owned(b"header", big.slice(..INLINE));
        assert_eq!(outbox.with_slices(&[], |slices| slices.len()), 1);
        let shown = format!("Outbox {{ inline_len: {}, payloads: 0 }}", 6 + INLINE);
        assert_eq!(format!("{outbox:?}"), shown);
        assert_eq!(outbox.advance(6), 0);
        let shown = format!("Outbox {{ inline_len: {INLINE}, payloads: 0 }}");
        assert_eq!(format!("{outbox:?}"), shown);
        for count in 1..=SLICES {
            outbox.push_owned(b"header", big.clone());
            if cfg!(miri) && !count.is_power_of_two() {
                continue;
            }
            let lent = outbox.with_slices(b"last", |slices| {
                assert!(slices.iter().all(|slice| !slice.is_empty()));
                let is_it = |slice: &&IoSlice<'_>| slice.as_ptr() == big.as_ptr();
                slices.iter().filter(is_it).count()
            });
            assert_eq!(lent, count.min(SLICES / 2));
        }
    }
}
