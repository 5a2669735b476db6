//! Reads: changes in memory above blocks of the store.

use super::{Disk, Inner, State};
use crate::{
    Error,
    changes::{Changes, Known, split},
    format::{FANOUT, Piece},
    map::{Found, Root},
    statistics::Counters,
};
use bytes::{Bytes, BytesMut};
use futures_util::{
    TryFutureExt,
    stream::{self, StreamExt, TryStreamExt},
};
use nbd_io::ReadData;
use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// A part of a block that is to be read, and its state.
struct Part {
    block: u64,
    range: Range<usize>,
    /// Parts above the stored block, the newest last.
    above: Vec<(usize, Bytes)>,
    below: Below,
}

enum Below {
    /// All bytes are in `above`.
    Covered,
    Zeroes,
    Stored,
}

/// Leaves of the map that a read gets at the same time.
const LEAVES: usize = 32;

/// Gets of one task that gets blocks ahead, at the same time.
const FETCHES: usize = 8;

/// Limit of tasks that get blocks ahead.
const AHEAD: usize = 8;

impl Disk {
    /// Reads `len` bytes from `offset` on.
    ///
    /// The cost is a get for each run of blocks that are neighbours in their segment and in no cache,
    /// up to [`get_size`](crate::Options::get_size); all at the same time. Before them comes one for
    /// each page of the map that is in no cache: one where the upper levels are, and none for zeroes.
    ///
    /// # Errors
    ///
    /// When the store fails, or has other bytes than were written.
    pub async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Error> {
        self.count_read(len);
        let len = len as u64;
        let mut tries = 0;
        loop {
            let (parts, root, ahead) = {
                let mut state = self.inner.state();
                state.check_range(offset, len)?;
                let parts = self.parts(&state, offset, len);
                let ahead = state.note_read(offset, len, self.inner.options.read_ahead);
                (parts, state.root(), ahead)
            };
            self.read_ahead(ahead);
            match self.inner.compose(parts, root).await {
                Ok(read) => return Ok(read),
                Err(error) => self.inner.overtaken(error, root, &mut tries).await?,
            }
        }
    }

    /// Like [`read`](Self::read), if everything is in memory; `None` if it would wait.
    ///
    /// # Errors
    ///
    /// When the range is not one of the disk, or the disk has failed.
    #[must_use]
    pub fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData, Error>> {
        let mut state = self.inner.state();
        if let Err(error) = state.check_range(offset, len as u64) {
            return Some(Err(error));
        }
        let parts = self.parts(&state, offset, len as u64);
        let root = state.root();
        let mut read = ReadData::new();
        let mut hits = 0;
        for part in parts {
            let base = match part.below {
                Below::Stored => self.inner.stored_now(root, part.block)?,
                Below::Covered | Below::Zeroes => None,
            };
            hits += u64::from(base.is_some());
            push(&mut read, part, base);
        }
        let ahead = state.note_read(offset, len as u64, self.inner.options.read_ahead);
        drop(state);
        self.count_read(len);
        Counters::count(&self.inner.objects.counters.cache_hits, hits);
        self.read_ahead(ahead);
        Some(Ok(read))
    }

    fn count_read(&self, len: usize) {
        let counters = &self.inner.objects.counters;
        Counters::count(&counters.reads, 1);
        Counters::count(&counters.bytes_read, len as u64);
    }

    fn parts(&self, state: &State, offset: u64, len: u64) -> Vec<Part> {
        let layers = [state.frozen.as_ref(), Some(&state.active)];
        split(self.inner.block_size, offset, len)
            .map(|(block, range)| part(layers, block, range))
            .collect()
    }

    /// Has blocks got into the cache that are going to be read.
    ///
    /// # Errors
    ///
    /// When the store fails, or has other bytes than were written.
    pub async fn cache(&self, offset: u64, len: u64) -> Result<(), Error> {
        let root = {
            let state = self.inner.state();
            state.check_range(offset, len)?;
            state.root()
        };
        // More would drive out the first ones.
        let len = len.min(self.inner.options.cache_size / 2);
        match self.inner.fetch(root, offset..offset + len).await {
            // The map has changed since, and this is no more than a hint.
            Err(error) if error.is_missing_object() && self.inner.state().root() != root => Ok(()),
            result => result.map(drop),
        }
    }

    fn read_ahead(&self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let inner = self.inner.clone();
        if inner.reading_ahead.fetch_add(1, Relaxed) >= AHEAD {
            inner.reading_ahead.fetch_sub(1, Relaxed);
            return;
        }
        self.inner.objects.runtime.spawn(async move {
            let root = inner.state().root();
            // The read that wants them meets the error again.
            if let Ok(count) = inner.fetch(root, range).await {
                Counters::count(&inner.objects.counters.read_ahead_blocks, count);
            }
            inner.reading_ahead.fetch_sub(1, Relaxed);
        });
    }
}

fn part(layers: [Option<&Changes>; 2], block: u64, range: Range<usize>) -> Part {
    let mut above = Vec::new();
    let mut below = Below::Stored;
    for layer in layers.into_iter().flatten() {
        match layer.known(block, &range) {
            Known::Nothing => {}
            Known::Zeroes => {
                above.clear();
                below = Below::Zeroes;
            }
            Known::All(bytes) => {
                above = vec![(range.start, bytes)];
                below = Below::Covered;
            }
            Known::Parts(parts) => above.extend(parts),
        }
    }
    Part {
        block,
        range,
        above,
        below,
    }
}

impl State {
    /// Takes note of a read, and returns the range to get ahead of the next ones.
    fn note_read(&mut self, offset: u64, len: u64, limit: u64) -> Range<u64> {
        let size = self.head.size;
        match self.streams.note(&(offset..offset + len), limit) {
            Some(range) => range.start..range.end.min(size),
            None => 0..0,
        }
    }
}

impl Inner {
    /// A block that the store has, if its place and its bytes are in the caches; `Some(None)` for a
    /// hole.
    fn stored_now(&self, root: Root, block: u64) -> Option<Option<Bytes>> {
        Some(match self.pages.find_now(root, block)? {
            Found::Hole { .. } => None,
            Found::Leaf { page, first } => match page.get(u8::try_from(block - first).ok()?) {
                Some(piece) => Some(self.records.cached(&piece)?),
                None => None,
            },
        })
    }

    /// Decides on an error of a call that began with the map of `root`: none if a collection of garbage
    /// may have overtaken the call, and there is a newer map for another attempt.
    pub(super) async fn overtaken(
        &self,
        error: Error,
        root: Root,
        tries: &mut u32,
    ) -> Result<(), Error> {
        const TRIES: u32 = 10;
        if !error.is_missing_object() {
            return Err(error);
        }
        if self.state().root() == root || *tries == TRIES {
            return Err(self.fenced().await.unwrap_or(error));
        }
        *tries += 1;
        Ok(())
    }

    async fn compose(&self, parts: Vec<Part>, root: Root) -> Result<ReadData, Error> {
        let wanted: Vec<u64> = parts
            .iter()
            .filter(|part| matches!(part.below, Below::Stored))
            .map(|part| part.block)
            .collect();
        let stored = self.stored(root, &wanted).await?;
        let mut stored = stored.into_iter();
        let mut read = ReadData::new();
        for part in parts {
            let base = match part.below {
                Below::Stored => stored.next().flatten(),
                Below::Covered | Below::Zeroes => None,
            };
            push(&mut read, part, base);
        }
        Ok(read)
    }

    /// The blocks with these numbers, which ascend, as the store has them; `None` for holes.
    pub(crate) async fn stored(
        &self,
        root: Root,
        wanted: &[u64],
    ) -> Result<Vec<Option<Bytes>>, Error> {
        let mut blocks: Vec<Option<Bytes>> = vec![None; wanted.len()];
        let leaves: Vec<&[u64]> = wanted
            .chunk_by(|one, next| one / FANOUT == next / FANOUT)
            .collect();
        let finds: Vec<_> = leaves.iter().map(|some| self.find(root, some[0])).collect();
        let found: Vec<Found> = stream::iter(finds).buffered(LEAVES).try_collect().await?;
        let (mut places, mut pieces) = (Vec::new(), Vec::new());
        let mut at = 0;
        for (some, found) in leaves.into_iter().zip(found) {
            if let Found::Leaf { page, first } = found {
                for (place, block) in (at..).zip(some) {
                    let index = u8::try_from(block - first).expect("a leaf has 256 slots");
                    if let Some(piece) = page.get(index) {
                        places.push(place);
                        pieces.push(piece);
                    }
                }
            }
            at += some.len();
        }
        let got = self
            .records
            .blocks(&pieces)
            .await
            .map_err(|error| self.locate(error, &pieces, |at| wanted[places[at]]))?;
        for (place, block) in places.into_iter().zip(got) {
            blocks[place] = Some(block);
        }
        Ok(blocks)
    }

    /// The part of the map around `block`.
    pub(crate) async fn find(&self, root: Root, block: u64) -> Result<Found, Error> {
        let start = block.saturating_mul(self.block_size as u64);
        let end = start.saturating_add(self.block_size as u64);
        self.pages
            .find(root, block)
            .await
            .map_err(|error| error.at(start..end))
    }

    /// Adds the bytes of the disk to a damage of a record.
    fn locate(&self, mut error: Error, pieces: &[Piece], block: impl Fn(usize) -> u64) -> Error {
        if let Error::Damaged(damage) = &mut error
            && let Some(at) = pieces.iter().position(|piece| {
                damage.range.start == piece.range().start
                    && damage
                        .object
                        .ends_with(&piece.object.name(crate::format::Kind::Segment))
            })
        {
            let start = block(at).saturating_mul(self.block_size as u64);
            damage.disk = Some(start..start.saturating_add(self.block_size as u64));
        }
        error
    }

    /// Gets all blocks of a range into the cache, and returns their number.
    async fn fetch(self: &Arc<Self>, root: Root, range: Range<u64>) -> Result<u64, Error> {
        let size = self.block_size as u64;
        let (mut block, end) = (range.start / size, range.end.div_ceil(size));
        let mut pieces = Vec::new();
        while block < end {
            match self.find(root, block).await? {
                Found::Hole { until } => block = until,
                Found::Leaf { page, first } => {
                    let stop = end.min(first + 256);
                    for block in block..stop {
                        let index = u8::try_from(block - first).expect("a leaf has 256 slots");
                        pieces.extend(
                            page.get(index)
                                .filter(|piece| !self.records.is_cached(piece)),
                        );
                    }
                    block = stop;
                }
            }
        }
        // Not all at once: a block that is in the cache is needed no longer.
        let blocks = self.options.get_size as usize / self.block_size;
        let parts: Vec<_> = pieces
            .chunks(blocks.max(1))
            .map(|some| self.records.blocks(some).map_ok(drop))
            .collect();
        let parts = stream::iter(parts).buffer_unordered(FETCHES);
        parts.try_collect::<()>().await?;
        Ok(pieces.len() as u64)
    }
}

/// Adds a part to the data before it.
fn push(read: &mut ReadData, part: Part, base: Option<Bytes>) {
    let Part {
        range,
        mut above,
        below,
        ..
    } = part;
    if let Below::Covered = below
        && let [(start, bytes)] = &mut above[..]
        && *start == range.start
        && bytes.len() == range.len()
    {
        read.push(std::mem::take(bytes));
        return;
    }
    if above.is_empty() {
        match base {
            Some(base) => read.push(base.slice(range)),
            None => read.push_zeroes(range.len()),
        }
        return;
    }
    let mut bytes = match base {
        Some(base) => BytesMut::from(&base[range.clone()]),
        None => BytesMut::zeroed(range.len()),
    };
    for (start, part) in above {
        let at = start - range.start;
        bytes[at..at + part.len()].copy_from_slice(&part);
    }
    read.push(bytes.freeze());
}
