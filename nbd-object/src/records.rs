//! Blocks that the store has: got in as few requests as that takes, verified, and cached.

use crate::{
    Error, LocalCache, Options,
    compression::decode_record,
    format::{Kind, ObjectId, Piece, checksum},
    map::bounded,
    statistics::Counters,
    store::Objects,
};
use bytes::Bytes;
use futures_util::{
    FutureExt,
    stream::{self, StreamExt, TryStreamExt},
};
use quick_cache::{
    DefaultHashBuilder, Weighter,
    sync::{Cache, DefaultLifecycle, PlaceholderGuard},
};
use std::{ops::Range, sync::Arc};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Records this far apart are got in one request, with the bytes between them.
const GAP: u64 = 32 << 10;

/// Requests of one read at the same time.
const CONCURRENT: usize = 32;

/// The least memory for records that are being got, in bytes. Otherwise it is half of the cache.
const IN_FLIGHT: u64 = 4 << 20;

/// Limit of a semaphore that all systems have.
const MOST_ROOMS: u32 = 1 << 28;

/// The part of the cache for blocks that were used again. In the other half, those that were got ahead
/// stay until they are read.
const PROVEN: f64 = 0.5;

type Key = (ObjectId, u32);

#[derive(Clone, Debug)]
pub(crate) struct BlockWeight;

impl Weighter<Key, Bytes> for BlockWeight {
    fn weight(&self, _: &Key, block: &Bytes) -> u64 {
        block.len() as u64 + 128
    }
}

type Blocks = Cache<Key, Bytes, BlockWeight>;
type Guard<'a> =
    PlaceholderGuard<'a, Key, Bytes, BlockWeight, DefaultHashBuilder, DefaultLifecycle<Key, Bytes>>;

#[derive(Debug)]
pub(crate) struct Records {
    objects: Arc<Objects>,
    cache: Blocks,
    block_size: usize,
    /// The limit of a request, in bytes.
    longest: u64,
    local: Option<LocalCache>,
    /// Memory for records that are being got, in KiB.
    room: Semaphore,
    /// All of that.
    rooms: u32,
}

impl Records {
    pub(crate) fn new(objects: Arc<Objects>, options: &Options, block_size: usize) -> Self {
        let rooms = (options.cache_size / 2).max(IN_FLIGHT) >> 10;
        let rooms = u32::try_from(rooms).unwrap_or(u32::MAX).min(MOST_ROOMS);
        Self {
            objects,
            cache: bounded(options.cache_size, block_size as u64, PROVEN, BlockWeight),
            block_size,
            longest: u64::from(options.get_size),
            local: options.local_cache.clone(),
            room: Semaphore::new(rooms as usize),
            rooms,
        }
    }

    /// Waits for memory for bytes that are to be got. It is held until they are blocks of their own.
    ///
    /// Its holders wait for the store alone, and not for blocks that others get.
    async fn room(&self, range: &Range<u64>) -> Option<SemaphorePermit<'_>> {
        let rooms = u32::try_from((range.end - range.start).div_ceil(1 << 10)).unwrap_or(u32::MAX);
        self.room.acquire_many(rooms.min(self.rooms)).await.ok()
    }

    pub(crate) fn cached_bytes(&self) -> u64 {
        self.cache.weight()
    }

    pub(crate) fn is_cached(&self, piece: &Piece) -> bool {
        self.cache.contains_key(&piece.key())
    }

    pub(crate) fn cached(&self, piece: &Piece) -> Option<Bytes> {
        self.cache.get(&piece.key())
    }

    pub(crate) fn insert(&self, piece: &Piece, block: Bytes) {
        self.cache.insert(piece.key(), block);
    }

    /// The blocks of `pieces`, in their order.
    ///
    /// A block that another call is getting is waited for, and not got a second time.
    pub(crate) async fn blocks(self: &Arc<Self>, pieces: &[Piece]) -> Result<Vec<Bytes>, Error> {
        let cached: Option<Vec<Bytes>> = pieces.iter().map(|piece| self.cached(piece)).collect();
        if let Some(blocks) = cached {
            Counters::count(&self.objects.counters.cache_hits, pieces.len() as u64);
            return Ok(blocks);
        }
        let (this, pieces) = (self.clone(), pieces.to_vec());
        self.objects
            .runtime
            .join(async move { this.load(&pieces).await })
            .await
    }

    async fn load(&self, pieces: &[Piece]) -> Result<Vec<Bytes>, Error> {
        let mut blocks: Vec<Option<Bytes>> = vec![None; pieces.len()];
        let mut missing: Vec<(usize, Guard<'_>)> = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            // Nothing is waited for while guards are held: two calls would wait for each other.
            match self
                .cache
                .get_value_or_guard_async(&piece.key())
                .now_or_never()
            {
                Some(Ok(block)) => blocks[at] = Some(block),
                Some(Err(guard)) => missing.push((at, guard)),
                None => {}
            }
        }
        let hits = pieces.len() - missing.len();
        Counters::count(&self.objects.counters.cache_hits, hits as u64);
        Counters::count(&self.objects.counters.cache_misses, missing.len() as u64);
        let missing = self.load_local(pieces, missing, &mut blocks).await;
        let runs: Vec<_> = self
            .runs(pieces, missing)
            .into_iter()
            .map(|run| self.get_run(pieces, run))
            .collect();
        let got: Vec<Vec<(usize, Bytes)>> = stream::iter(runs)
            .buffer_unordered(CONCURRENT)
            .try_collect()
            .await?;
        for (at, block) in got.into_iter().flatten() {
            blocks[at] = Some(block);
        }
        let mut all = Vec::with_capacity(pieces.len());
        for (block, piece) in blocks.into_iter().zip(pieces) {
            all.push(match block {
                Some(block) => block,
                None => {
                    self.cache
                        .get_or_insert_async(&piece.key(), self.get(piece))
                        .await?
                }
            });
        }
        Ok(all)
    }

    /// The block of one record, past the cache.
    async fn get(&self, piece: &Piece) -> Result<Bytes, Error> {
        self.check_len(piece)?;
        if let Some(block) = self.get_local(piece).await {
            return Ok(block);
        }
        let _room = self.room(&piece.range()).await;
        let stored = self
            .objects
            .get_range(Kind::Segment, piece.object, piece.range())
            .await?;
        self.decode(piece, stored)
    }

    /// Takes blocks from the cache on the local disk, and returns those that it lacks.
    async fn load_local<'a>(
        &self,
        pieces: &[Piece],
        missing: Vec<(usize, Guard<'a>)>,
        blocks: &mut [Option<Bytes>],
    ) -> Vec<(usize, Guard<'a>)> {
        if self.local.is_none() {
            return missing;
        }
        let gets: Vec<_> = missing
            .iter()
            .map(|(at, _)| self.get_local(&pieces[*at]))
            .collect();
        let got: Vec<Option<Bytes>> = stream::iter(gets).buffered(CONCURRENT).collect().await;
        let mut rest = Vec::new();
        for ((at, guard), block) in missing.into_iter().zip(got) {
            match block {
                Some(block) => {
                    let _ = guard.insert(block.clone());
                    blocks[at] = Some(block);
                }
                None => rest.push((at, guard)),
            }
        }
        rest
    }

    async fn get_local(&self, piece: &Piece) -> Option<Bytes> {
        let stored = self.local.as_ref()?.get(piece).await?;
        let block = self.decode(piece, stored).ok()?;
        Counters::count(&self.objects.counters.local_cache_hits, 1);
        Some(block)
    }

    fn keep_local(&self, piece: &Piece, stored: &Bytes) {
        if let Some(work) = self
            .local
            .as_ref()
            .and_then(|local| local.keep(piece, stored))
        {
            self.objects.runtime.spawn(work);
        }
    }

    /// The errors of records, past the cache, with their records. Without the feature that a
    /// record needs, its stored bytes are compared with their checksum, and that is all.
    pub(crate) async fn verify(&self, records: &[(u64, Piece)]) -> Vec<(u64, Error)> {
        let mut errors = Vec::new();
        let mut sorted: Vec<&(u64, Piece)> = Vec::with_capacity(records.len());
        for record in records {
            match self.check_len(&record.1) {
                Ok(()) => sorted.push(record),
                Err(error) => errors.push((record.0, error)),
            }
        }
        sorted.sort_by_key(|(_, piece)| piece.key());
        let runs = sorted.chunk_by(|(_, last), (_, next)| {
            last.object == next.object && last.range().end == next.range().start
        });
        let limit = usize::try_from(self.longest).unwrap_or(usize::MAX) / self.block_size;
        for run in runs.flat_map(|run| run.chunks(limit.max(1))) {
            let Some(range) = whole_range(run) else {
                continue;
            };
            let _room = self.room(&range).await;
            let got = self
                .objects
                .get_range(Kind::Segment, run[0].1.object, range.clone())
                .await;
            for (block, piece) in run {
                let stored = match &got {
                    Ok(bytes) => {
                        let start = usize::try_from(piece.range().start - range.start)
                            .unwrap_or(usize::MAX);
                        Ok(bytes.slice(start..start + piece.len as usize))
                    }
                    // The rest of the run may be whole.
                    Err(_) => {
                        self.objects
                            .get_range(Kind::Segment, piece.object, piece.range())
                            .await
                    }
                };
                let result = stored.and_then(|bytes| self.decode(piece, bytes));
                if let Err(error) = result
                    && !matches!(error, Error::Unsupported(_))
                {
                    errors.push((*block, error));
                }
            }
        }
        errors
    }

    fn check_len(&self, piece: &Piece) -> Result<(), Error> {
        if piece.len as usize > self.block_size {
            let detail = format!("a record of {} bytes is longer than a block", piece.len);
            return Err(self.objects.damage(Kind::Segment, piece, detail));
        }
        Ok(())
    }

    fn decode(&self, piece: &Piece, stored: Bytes) -> Result<Bytes, Error> {
        if checksum(&stored) != piece.checksum {
            return Err(self.objects.damage(
                Kind::Segment,
                piece,
                "the checksum of a record is wrong",
            ));
        }
        decode_record(piece.codec, stored, self.block_size)?
            .map_err(|detail| self.objects.damage(Kind::Segment, piece, detail))
    }

    /// Joins records that are near each other in their segment.
    fn runs<'a>(
        &self,
        pieces: &[Piece],
        mut missing: Vec<(usize, Guard<'a>)>,
    ) -> Vec<Vec<(usize, Guard<'a>)>> {
        missing.sort_by_key(|(at, _)| pieces[*at].key());
        let mut runs: Vec<Vec<(usize, Guard<'a>)>> = Vec::new();
        for (at, guard) in missing {
            let piece = &pieces[at];
            let joins = runs.last().and_then(|run| {
                let (first, last) = (&pieces[run.first()?.0], &pieces[run.last()?.0]);
                let gap = piece.range().start.checked_sub(last.range().end)?;
                let len = piece.range().end - first.range().start;
                Some(last.object == piece.object && gap <= GAP && len <= self.longest)
            });
            match runs.last_mut() {
                Some(run) if joins == Some(true) => run.push((at, guard)),
                _ => runs.push(vec![(at, guard)]),
            }
        }
        runs
    }

    async fn get_run(
        &self,
        pieces: &[Piece],
        run: Vec<(usize, Guard<'_>)>,
    ) -> Result<Vec<(usize, Bytes)>, Error> {
        for (at, _) in &run {
            self.check_len(&pieces[*at])?;
        }
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else {
            return Ok(Vec::new());
        };
        let (id, range) = (
            pieces[*first].object,
            pieces[*first].range().start..pieces[*last].range().end,
        );
        let _room = self.room(&range).await;
        let bytes = self
            .objects
            .get_range(Kind::Segment, id, range.clone())
            .await?;
        let alone = run.len() == 1;
        let mut blocks = Vec::with_capacity(run.len());
        for (at, guard) in run {
            let piece = &pieces[at];
            let start = usize::try_from(piece.range().start - range.start).expect("a run is short");
            let stored = bytes.slice(start..start + piece.len as usize);
            // A block in the cache must not keep its neighbours' memory.
            let stored = if alone {
                stored
            } else {
                Bytes::copy_from_slice(&stored)
            };
            let block = self.decode(piece, stored.clone())?;
            self.keep_local(piece, &stored);
            let _ = guard.insert(block.clone());
            blocks.push((at, block));
        }
        Ok(blocks)
    }
}

fn whole_range(run: &[&(u64, Piece)]) -> Option<Range<u64>> {
    let (first, last) = (run.first()?, run.last()?);
    Some(first.1.range().start..last.1.range().end)
}
