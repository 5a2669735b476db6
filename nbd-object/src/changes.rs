//! Changes in memory, above the contents of the store.

use bytes::{Bytes, BytesMut};
use std::{collections::BTreeMap, ops::Range};

const SECTOR: usize = 512;

/// Bytes of bookkeeping for a block and for a run, so that their number is bounded, too.
const OVERHEAD: u64 = 128;

/// A block of which some sectors were written.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Lent to readers; a write while they have it makes a copy.
    data: Bytes,
    /// A bit for each sector that was written.
    written: u128,
}

/// Blocks that were written, and runs of blocks that read as zeroes. No block is both.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    block_size: usize,
    blocks: BTreeMap<u64, Block>,
    /// Runs of whole blocks by their beginnings, with their ends.
    holes: BTreeMap<u64, u64>,
}

/// The knowledge of a layer about some bytes of a block.
#[derive(Debug)]
pub(crate) enum Known {
    /// Nothing: a lower layer decides.
    Nothing,
    Zeroes,
    All(Bytes),
    /// Some parts, with their places in the block; a lower layer has the rest.
    Parts(Vec<(usize, Bytes)>),
}

fn mask(range: &Range<usize>) -> u128 {
    let (first, end) = (range.start / SECTOR, range.end.div_ceil(SECTOR));
    let upto = |sectors: usize| {
        if sectors >= 128 {
            u128::MAX
        } else {
            (1u128 << sectors) - 1
        }
    };
    upto(end) & !upto(first)
}

/// The runs of sectors within a range whose bits are set.
fn runs(sectors: u128, range: &Range<usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
        if sectors & (1u128 << sector) != 0 {
            let run = (sector * SECTOR).max(range.start)..((sector + 1) * SECTOR).min(range.end);
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
    }
    runs
}

impl Block {
    fn is_whole(&self) -> bool {
        self.written & mask(&(0..self.data.len())) == mask(&(0..self.data.len()))
    }

    /// The runs of written sectors within a range of the block.
    fn parts(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        runs(self.written, range)
    }

    /// Fills the sectors that were not written with those of `base`; they are zeroes without one.
    fn complete(&mut self, base: Option<&Bytes>) {
        if let Some(base) = base {
            for gap in runs(!self.written, &(0..self.data.len())) {
                self.change(&gap, |part| part.copy_from_slice(&base[gap.clone()]));
            }
        }
        self.written = u128::MAX;
    }

    /// Changes a part, which counts as written.
    fn change(&mut self, part: &Range<usize>, change: impl FnOnce(&mut [u8])) {
        let data = std::mem::take(&mut self.data);
        let mut data = data
            .try_into_mut()
            .unwrap_or_else(|lent| BytesMut::from(&lent[..]));
        change(&mut data[part.clone()]);
        self.data = data.freeze();
        self.written |= mask(part);
    }
}

impl Changes {
    pub(crate) fn new(block_size: usize) -> Self {
        Self {
            block_size,
            blocks: BTreeMap::new(),
            holes: BTreeMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.holes.is_empty()
    }

    /// The memory that these changes take, in bytes.
    pub(crate) fn weight(&self) -> u64 {
        let block = self.block_size as u64 + OVERHEAD;
        self.blocks.len() as u64 * block + self.holes.len() as u64 * OVERHEAD
    }

    /// The blocks that were written, in order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.keys().copied()
    }

    /// The bytes of a block that was written, if all of it is known.
    pub(crate) fn whole(&self, index: u64) -> Option<Bytes> {
        let block = self.blocks.get(&index).filter(|block| block.is_whole())?;
        Some(block.data.clone())
    }

    /// Completes a block that was written in part with stored bytes, or zeroes, in the memory that it
    /// has.
    pub(crate) fn complete(&mut self, index: u64, base: Option<&Bytes>) {
        if let Some(block) = self.blocks.get_mut(&index) {
            block.complete(base);
        }
    }

    /// The runs of blocks that read as zeroes.
    pub(crate) fn holes(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.holes.iter().map(|(start, end)| *start..*end)
    }

    /// The parts of blocks that `len` bytes from `offset` on are made of.
    pub(crate) fn split(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
        split(self.block_size, offset, len)
    }

    pub(crate) fn write(&mut self, offset: u64, mut data: &[u8]) {
        for (index, range) in self.split(offset, data.len() as u64) {
            let (now, rest) = data.split_at(range.len());
            data = rest;
            if range.len() == self.block_size {
                self.fill(index..index + 1);
                let data = Bytes::copy_from_slice(now);
                self.blocks.insert(
                    index,
                    Block {
                        data,
                        written: u128::MAX,
                    },
                );
                continue;
            }
            self.block(index)
                .change(&range, |part| part.copy_from_slice(now));
        }
    }

    /// Makes bytes zeroes: whole blocks by runs, parts of blocks as if zeroes were written.
    pub(crate) fn zero(&mut self, offset: u64, len: u64, size: u64) {
        let whole = self.whole_blocks(offset, len, size);
        let block_size = self.block_size as u64;
        let (inner, outer) = (
            whole.start * block_size..whole.end * block_size,
            offset..offset + len,
        );
        if whole.is_empty() {
            self.zero_parts(outer);
            return;
        }
        self.zero_parts(outer.start..inner.start.max(outer.start));
        self.zero_parts(inner.end.min(outer.end)..outer.end);
        self.punch(whole);
    }

    /// Drops whole blocks; parts of blocks at the ends stay as they are.
    pub(crate) fn trim(&mut self, offset: u64, len: u64, size: u64) {
        let whole = self.whole_blocks(offset, len, size);
        if !whole.is_empty() {
            self.punch(whole);
        }
    }

    /// The blocks inside a range. The last block of the disk is whole where the disk ends.
    fn whole_blocks(&self, offset: u64, len: u64, size: u64) -> Range<u64> {
        let block_size = self.block_size as u64;
        let end = offset + len;
        let last = if end == size {
            end.div_ceil(block_size)
        } else {
            end / block_size
        };
        offset.div_ceil(block_size)..last
    }

    fn zero_parts(&mut self, range: Range<u64>) {
        for (index, part) in self.split(range.start, range.end - range.start) {
            if self.hole_at(index).is_some() {
                continue;
            }
            self.block(index).change(&part, |part| part.fill(0));
        }
    }

    fn block(&mut self, index: u64) -> &mut Block {
        let hole = self.hole_at(index).is_some();
        if hole {
            self.fill(index..index + 1);
        }
        let size = self.block_size;
        self.blocks.entry(index).or_insert_with(|| Block {
            data: BytesMut::zeroed(size).freeze(),
            // The sectors of a hole are known: they are zeroes.
            written: if hole { u128::MAX } else { 0 },
        })
    }

    fn hole_at(&self, index: u64) -> Option<Range<u64>> {
        let (start, end) = self.holes.range(..=index).next_back()?;
        (index < *end).then_some(*start..*end)
    }

    fn punch(&mut self, range: Range<u64>) {
        let inside: Vec<u64> = self
            .blocks
            .range(range.clone())
            .map(|(index, _)| *index)
            .collect();
        for index in inside {
            self.blocks.remove(&index);
        }
        self.fill(range.clone());
        let mut joined = range;
        if let Some(before) = joined
            .start
            .checked_sub(1)
            .and_then(|before| self.hole_at(before))
        {
            self.holes.remove(&before.start);
            joined.start = before.start;
        }
        if let Some(after) = self.hole_at(joined.end) {
            self.holes.remove(&after.start);
            joined.end = after.end;
        }
        self.holes.insert(joined.start, joined.end);
    }

    /// Takes a range out of the holes.
    fn fill(&mut self, range: Range<u64>) {
        if let Some(first) = self.hole_at(range.start) {
            self.holes.remove(&first.start);
            if first.start < range.start {
                self.holes.insert(first.start, range.start);
            }
            if range.end < first.end {
                self.holes.insert(range.end, first.end);
            }
        }
        let inside: Vec<(u64, u64)> = self
            .holes
            .range(range.clone())
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in inside {
            self.holes.remove(&start);
            if range.end < end {
                self.holes.insert(range.end, end);
            }
        }
    }

    /// The knowledge about a range of a block.
    pub(crate) fn known(&self, index: u64, range: &Range<usize>) -> Known {
        if let Some(block) = self.blocks.get(&index) {
            let parts = block.parts(range);
            return match &parts[..] {
                [] => Known::Nothing,
                [all] if all == range => Known::All(block.data.slice(range.clone())),
                _ => Known::Parts(
                    parts
                        .into_iter()
                        .map(|part| (part.start, block.data.slice(part)))
                        .collect(),
                ),
            };
        }
        if self.hole_at(index).is_some() {
            Known::Zeroes
        } else {
            Known::Nothing
        }
    }

    /// The status of blocks from `index` on: whether they are data, holes, or unknown here, and the
    /// end of the run.
    pub(crate) fn run(&self, index: u64) -> (Option<bool>, u64) {
        if self.blocks.contains_key(&index) {
            let mut end = index + 1;
            while self.blocks.contains_key(&end) {
                end += 1;
            }
            return (Some(true), end);
        }
        if let Some(hole) = self.hole_at(index) {
            return (Some(false), hole.end);
        }
        let block = self.blocks.range(index..).next().map(|(index, _)| *index);
        let hole = self.holes.range(index..).next().map(|(start, _)| *start);
        (
            None,
            block.unwrap_or(u64::MAX).min(hole.unwrap_or(u64::MAX)),
        )
    }

    /// These changes, and newer ones above them.
    pub(crate) fn and_then(mut self, newer: Self) -> Self {
        let holes: Vec<_> = newer.holes().collect();
        for hole in holes {
            self.punch(hole);
        }
        for (index, block) in newer.blocks {
            if block.is_whole() {
                self.fill(index..index + 1);
                self.blocks.insert(index, block);
                continue;
            }
            let below = self.block(index);
            for part in block.parts(&(0..block.data.len())) {
                below.change(&part, |below| {
                    below.copy_from_slice(&block.data[part.clone()])
                });
            }
        }
        self
    }
}

/// The parts of blocks that `len` bytes from `offset` on are made of.
pub(crate) fn split(
    block_size: usize,
    offset: u64,
    len: u64,
) -> impl Iterator<Item = (u64, Range<usize>)> {
    let size = block_size as u64;
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let index = at / size;
        let stop = ((index + 1) * size).min(end);
        let within =
            |offset: u64| usize::try_from(offset - index * size).expect("a block is small");
        let range = within(at)..within(stop);
        at = stop;
        Some((index, range))
    })
}
