//! An export that lives in memory.

use crate::{
    export::{Content, Export, ZeroMode, check_range},
    zeroes::is_zero,
};
use nbd_proto::{
    BlockSizes, Errno, Failure, TransmissionFlags,
    meta::{Allocation, Extent},
};
use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

/// The bytes of a page, as a length in memory and as one on the export.
const PAGE: usize = 32 << 10;
const PAGE_LEN: u64 = 32 << 10;

/// Number of locks that the pages share. Neighbouring pages have different ones.
const STRIPES: u64 = 64;

/// Limit of pages that [`Memory::allocation`] looks at before it answers: 32 MiB of them.
const MAX_SCAN: u64 = 1024;

/// Limit of pages that are freed before other threads get at the stripe.
const MAX_FREED: usize = 64;

/// An export in memory that takes up space only for written data.
///
/// The memory comes in pages of [`Memory::PAGE`] bytes: one is allocated by the first write of
/// something other than zeroes to it, or by zeroes that must not be a hole, and freed when it is
/// trimmed or zeroed. An empty export of any size costs next to nothing, and so do questions about
/// its holes. The memory of all pages together is bounded by the size of the export, and by
/// [`with_limit`](Self::with_limit).
///
/// It offers everything that a writable export can offer. There is no stable storage: flushes and
/// FUA are accepted and do nothing, as there is nothing that outlives the process.
///
/// Any number of threads can use it at once. Reads never wait for each other, and seldom for a
/// write to another page. Of overlapping writes in flight at the same time either can win, page
/// by page; 512-byte sectors are never torn.
///
/// ```
/// use nbd_io::{Export, Memory};
///
/// let disk = Memory::new(1 << 40).with_description("scratch space");
/// disk.write(1 << 30, b"hello", false)?;
/// assert_eq!(disk.allocated(), Memory::PAGE);
/// # Ok::<(), nbd_proto::Failure>(())
/// ```
pub struct Memory {
    size: u64,
    read_only: bool,
    block_sizes: BlockSizes,
    description: String,
    /// Limit of pages.
    limit: u64,
    /// Number of pages.
    pages: AtomicU64,
    stripes: Box<[Stripe]>,
}

/// The pages whose number leaves the same remainder when divided by [`STRIPES`].
// Aligned, so that taking one lock does not slow down the next.
#[derive(Default)]
#[repr(align(64))]
struct Stripe(RwLock<BTreeMap<u64, Page>>);

struct Page {
    /// Always [`PAGE`] bytes, even where the export ends before.
    bytes: Box<[u8]>,
    /// Nothing but zeroes is in it, for certain.
    zero: bool,
}

impl Memory {
    /// The size of a page in bytes.
    pub const PAGE: u64 = PAGE_LEN;

    /// A writable export of `size` bytes, all of them zero.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            read_only: false,
            block_sizes: BlockSizes::UNKNOWN,
            description: String::new(),
            limit: size.div_ceil(PAGE_LEN),
            pages: AtomicU64::new(0),
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
        }
    }

    /// Refuses every change from here on; earlier writes stay.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Sends clients these block sizes. The export itself takes any offset and length.
    #[must_use]
    pub fn with_block_sizes(mut self, block_sizes: BlockSizes) -> Self {
        self.block_sizes = block_sizes;
        self
    }

    /// Sends clients a description of this export.
    #[must_use]
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Lets all pages together take up at most `limit` bytes, rounded down to whole pages; a write
    /// that needs more fails with [`Errno::NoSpc`]. Holes are then reported as such, so that a
    /// client knows where a write can fail.
    ///
    /// An export larger than the memory there is needs such a limit, if its clients are not
    /// trusted: they can ask for all of it to be allocated.
    #[must_use]
    pub fn with_limit(mut self, limit: u64) -> Self {
        self.limit = limit / PAGE_LEN;
        self
    }

    /// Number of bytes that all pages together take up.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) * PAGE_LEN
    }

    fn check_writable(&self, offset: u64, len: u64, errno: Errno) -> Result<(), Failure> {
        if self.read_only {
            return Err(Errno::Perm.into());
        }
        check_range(self.size, offset, len, errno)
    }

    fn stripe(&self, page: u64) -> &Stripe {
        let at = usize::try_from(page % STRIPES).expect("STRIPES fits");
        &self.stripes[at]
    }

    /// Whether the page is known to be zero, or `None` if it is a hole.
    fn zero(&self, page: u64) -> Option<bool> {
        self.stripe(page).read().get(&page).map(|page| page.zero)
    }

    /// The first page in `range` that is not a hole.
    fn next_page(&self, range: Range<u64>) -> Option<u64> {
        let mut found: Option<u64> = None;
        // Each turn asks another stripe, which has no page of the range before this one.
        for page in range.start..range.end.min(range.start.saturating_add(STRIPES)) {
            if found.is_some_and(|found| found <= page) {
                break;
            }
            let end = found.unwrap_or(range.end);
            let stripe = self.stripe(page).read();
            if let Some((page, _)) = stripe.range(page..end).next() {
                found = Some(*page);
            }
        }
        found
    }

    /// Makes holes of whole pages.
    fn free(&self, range: Range<u64>) {
        for page in range.start..range.end.min(range.start.saturating_add(STRIPES)) {
            let mut from = page;
            'stripe: loop {
                let mut stripe = self.stripe(page).write();
                for _ in 0..MAX_FREED {
                    let Some((&page, _)) = stripe.range(from..range.end).next() else {
                        break 'stripe;
                    };
                    self.remove(&mut stripe, page);
                    from = page + 1;
                }
            }
        }
    }

    fn remove(&self, stripe: &mut BTreeMap<u64, Page>, page: u64) {
        if stripe.remove(&page).is_some() {
            self.pages.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Puts a page where there is a hole: zeroes, with `data` at `start` in it.
    fn insert(
        &self,
        stripe: &mut BTreeMap<u64, Page>,
        page: u64,
        start: usize,
        data: &[u8],
    ) -> Result<(), Failure> {
        let room = self
            .pages
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pages| {
                (pages < self.limit).then_some(pages + 1)
            });
        let mut bytes = Vec::new();
        if room.is_err() || bytes.try_reserve_exact(PAGE).is_err() {
            if room.is_ok() {
                self.pages.fetch_sub(1, Ordering::Relaxed);
            }
            return Err(Failure {
                message: "the memory of this export is used up".into(),
                offset: page.checked_mul(PAGE_LEN),
                ..Errno::NoSpc.into()
            });
        }
        bytes.resize(start, 0);
        bytes.extend_from_slice(data);
        bytes.resize(PAGE, 0);
        let bytes = bytes.into_boxed_slice();
        let zero = data.is_empty();
        stripe.insert(page, Page { bytes, zero });
        Ok(())
    }

    /// Zeroes a part of a page, and gives the page back if nothing is left in it.
    fn clear(&self, page: u64, part: Range<usize>) {
        let mut stripe = self.stripe(page).write();
        if let Some(found) = stripe.get_mut(&page) {
            found.clear(part);
            if found.zero || is_zero(&found.bytes) {
                self.remove(&mut stripe, page);
            }
        }
    }

    /// Zeroes a part of a page, which has memory afterwards.
    fn provision(&self, page: u64, part: Range<usize>) -> Result<(), Failure> {
        let mut stripe = self.stripe(page).write();
        match stripe.get_mut(&page) {
            Some(found) => {
                found.clear(part);
                Ok(())
            }
            None => self.insert(&mut stripe, page, 0, &[]),
        }
    }
}

impl Export for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn flags(&self) -> TransmissionFlags {
        let flags = TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO
            | TransmissionFlags::SEND_CACHE
            | TransmissionFlags::CAN_MULTI_CONN;
        if self.read_only {
            flags | TransmissionFlags::READ_ONLY
        } else {
            flags
        }
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn description(&self) -> &str {
        &self.description
    }

    fn may_block(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        if self.read_unless_zero(offset, buf)? == Content::Zeroes {
            buf.fill(0);
        }
        Ok(())
    }

    fn read_unless_zero(&self, offset: u64, buf: &mut [u8]) -> Result<Content, Failure> {
        let len = buf.len() as u64;
        check_range(self.size, offset, len, Errno::Inval)?;
        let mut content = Content::Zeroes;
        let mut at = 0;
        for (page, part) in parts(offset, len) {
            let start = at;
            at += part.len();
            let stripe = self.stripe(page).read();
            let Some(page) = stripe.get(&page).filter(|page| !page.zero) else {
                if content == Content::Data {
                    buf[start..at].fill(0);
                }
                continue;
            };
            if content == Content::Zeroes && start > 0 {
                buf[..start].fill(0);
            }
            content = Content::Data;
            buf[start..at].copy_from_slice(&page.bytes[part]);
        }
        Ok(content)
    }

    fn write(&self, offset: u64, data: &[u8], _fua: bool) -> Result<(), Failure> {
        let len = data.len() as u64;
        self.check_writable(offset, len, Errno::NoSpc)?;
        let mut rest = data;
        for (page, part) in parts(offset, len) {
            let now;
            (now, rest) = rest.split_at(part.len());
            let mut stripe = self.stripe(page).write();
            match stripe.get_mut(&page) {
                Some(page) => {
                    page.bytes[part].copy_from_slice(now);
                    page.zero = false;
                }
                None if is_zero(now) => {}
                None => self.insert(&mut stripe, page, part.start, now)?,
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.check_writable(offset, len, Errno::NoSpc)?;
        if mode.no_hole {
            // Zeroes that cannot succeed are not even begun, so that they do not use up the memory
            // that is left.
            if len / PAGE_LEN > self.limit {
                return Err(Failure {
                    message: "the range is larger than the memory of this export".into(),
                    ..Errno::NoSpc.into()
                });
            }
            return parts(offset, len).try_for_each(|(page, part)| self.provision(page, part));
        }
        if len == 0 {
            return Ok(());
        }
        let end = offset + len;
        let whole = offset.div_ceil(PAGE_LEN)..if end == self.size {
            end.div_ceil(PAGE_LEN)
        } else {
            end / PAGE_LEN
        };
        // Up to the first whole page, or to the end of a range without one.
        let head = end.min(whole.start.saturating_mul(PAGE_LEN)) - offset;
        for (page, part) in parts(offset, head) {
            self.clear(page, part);
        }
        if whole.start <= whole.end {
            self.free(whole.clone());
            let tail = whole.end.saturating_mul(PAGE_LEN).min(end);
            for (page, part) in parts(tail, end - tail) {
                self.clear(page, part);
            }
        }
        Ok(())
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        self.check_writable(offset, len, Errno::Inval)?;
        let mode = ZeroMode {
            fua,
            ..ZeroMode::default()
        };
        self.write_zeroes(offset, len, mode)
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        check_range(self.size, offset, len, Errno::Inval)
    }

    fn flush(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn finds_zeroes(&self) -> bool {
        true
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        check_range(self.size, offset, len, Errno::Inval)?;
        let end = offset + len;
        let pages = offset / PAGE_LEN..end.div_ceil(PAGE_LEN);
        let Some(zero) = self.zero(pages.start) else {
            let next = self.next_page(pages.start + 1..pages.end);
            return Ok(Extent {
                len: next.map_or(end, |next| next * PAGE_LEN) - offset,
                status: Allocation::HOLE | Allocation::ZERO,
            });
        };
        let end_of_scan = pages.end.min(pages.start + MAX_SCAN);
        let next = (pages.start + 1..end_of_scan)
            .find(|page| self.zero(*page) != Some(zero))
            .unwrap_or(end_of_scan);
        Ok(Extent {
            len: next.saturating_mul(PAGE_LEN).min(end) - offset,
            status: if zero { Allocation::ZERO } else { 0 },
        })
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("size", &self.size)
            .field("read_only", &self.read_only)
            .field("allocated", &self.allocated())
            .finish_non_exhaustive()
    }
}

impl Stripe {
    // Every change of a stripe is complete before anything could panic, so that a poisoned lock
    // means nothing about the pages.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Page>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Page>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    fn clear(&mut self, part: Range<usize>) {
        if !self.zero {
            self.zero = part.len() == PAGE;
            self.bytes[part].fill(0);
        }
    }
}

/// Cuts a range where pages end: the number of each page, and which of its bytes are meant.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let (mut at, mut rest) = (offset, len);
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let within = at % PAGE_LEN;
        let len = rest.min(PAGE_LEN - within);
        let page = at / PAGE_LEN;
        at = at.saturating_add(len);
        rest -= len;
        let start = usize::try_from(within).expect("PAGE fits");
        let end = usize::try_from(within + len).expect("PAGE fits");
        Some((page, start..end))
    })
}

#[cfg(test)]
mod tests;
