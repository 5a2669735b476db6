//! The map of a disk: a tree of immutable pages, from blocks to records.

mod edit;
mod walk;

pub(crate) use edit::{Edit, edit};
pub(crate) use walk::Walk;

use crate::{
    Error,
    format::{FANOUT, Head, Kind, ObjectId, PAGE_LIMIT, Page, Piece},
    statistics::Counters,
    store::Objects,
};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use quick_cache::{OptionsBuilder, Weighter, sync::Cache};
use std::{ops::Range, sync::Arc};

/// Leaves that are got for one call.
pub(crate) const LEAVES: usize = 256;

/// Pages of one call that are got at the same time.
const CONCURRENT: usize = 32;

/// The number of blocks below a page of `level`, which is zero for leaves.
pub(crate) fn span(level: u8) -> u64 {
    FANOUT.saturating_pow(u32::from(level) + 1)
}

/// The topmost page of a tree, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) page: Option<Piece>,
    pub(crate) levels: u8,
}

impl From<&Head> for Root {
    fn from(head: &Head) -> Self {
        Self {
            page: head.root,
            levels: head.levels,
        }
    }
}

/// The part of the map around a block.
#[derive(Debug)]
pub(crate) enum Found {
    /// No block up to `until` has data.
    Hole { until: u64 },
    /// A leaf, and its first block.
    Leaf { page: Page, first: u64 },
}

#[derive(Clone, Debug)]
struct PageWeight;

impl Weighter<(ObjectId, u32), Page> for PageWeight {
    fn weight(&self, _: &(ObjectId, u32), page: &Page) -> u64 {
        page.len() as u64 + 128
    }
}

/// Pages, got when they are needed and kept in bounded memory.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) objects: Arc<Objects>,
    cache: Cache<(ObjectId, u32), Page, PageWeight>,
}

impl Pages {
    pub(crate) fn new(objects: Arc<Objects>, capacity: u64) -> Self {
        Self {
            objects,
            cache: bounded(capacity, 6000, 0.97, PageWeight),
        }
    }

    /// The page that `piece` refers to, which has to be of `level`.
    pub(crate) async fn load(self: &Arc<Self>, piece: &Piece, level: u8) -> Result<Page, Error> {
        let page = match self.cache.get(&piece.key()) {
            Some(page) => page,
            None => {
                let (this, piece) = (self.clone(), *piece);
                let work = async move {
                    this.cache
                        .get_or_insert_async(&piece.key(), this.get(&piece, level))
                        .await
                };
                self.objects.runtime.join(work).await?
            }
        };
        // A page that was got for another level is in the cache if the map refers to it twice.
        if page.level() == level {
            Ok(page)
        } else {
            Err(self
                .objects
                .damage(Kind::Map, piece, "a page is at two levels of the map"))
        }
    }

    /// The same past the cache.
    pub(crate) async fn get(&self, piece: &Piece, level: u8) -> Result<Page, Error> {
        if piece.len > PAGE_LIMIT {
            let detail = format!("a page of {} bytes is longer than {PAGE_LIMIT}", piece.len);
            return Err(self.objects.damage(Kind::Map, piece, detail));
        }
        Counters::count(&self.objects.counters.page_misses, 1);
        let bytes = self
            .objects
            .get_range(Kind::Map, piece.object, piece.range())
            .await?;
        if crate::format::checksum(&bytes) != piece.checksum {
            return Err(self
                .objects
                .damage(Kind::Map, piece, "the checksum of a page is wrong"));
        }
        Page::decode(bytes, level).map_err(|detail| self.objects.damage(Kind::Map, piece, detail))
    }

    pub(crate) fn insert(&self, piece: &Piece, page: Page) {
        self.cache.insert(piece.key(), page);
    }

    /// The part of the map around `block`.
    pub(crate) async fn find(self: &Arc<Self>, root: Root, block: u64) -> Result<Found, Error> {
        let mut step = Step::first(root);
        loop {
            match step {
                Step::Found(found) => return Ok(found),
                Step::Load(piece, level) => {
                    step = Step::below(self.load(&piece, level).await?, level, block);
                }
            }
        }
    }

    /// Gets the pages on the way to the first leaves of a range of blocks at the same time, a level
    /// after the other, and keeps them in the cache.
    pub(crate) async fn warm(
        self: &Arc<Self>,
        root: Root,
        blocks: Range<u64>,
    ) -> Result<(), Error> {
        let mut places: Vec<(Piece, u64)> = root.page.into_iter().map(|page| (page, 0)).collect();
        for level in (0..root.levels).rev() {
            let loads: Vec<_> = places
                .iter()
                .map(|(piece, first)| self.load_at(*piece, level, *first))
                .collect();
            let pages: Vec<(Page, u64)> = stream::iter(loads)
                .buffered(CONCURRENT)
                .try_collect()
                .await?;
            let Some(below) = level.checked_sub(1) else {
                break;
            };
            places = pages
                .iter()
                .flat_map(|(page, first)| {
                    let child = move |(index, piece)| {
                        (
                            piece,
                            first.saturating_add(u64::from(index).saturating_mul(span(below))),
                        )
                    };
                    page.iter().map(child)
                })
                .filter(|(_, first)| {
                    *first < blocks.end && first.saturating_add(span(below)) > blocks.start
                })
                .take(LEAVES)
                .collect();
        }
        Ok(())
    }

    async fn load_at(
        self: &Arc<Self>,
        piece: Piece,
        level: u8,
        first: u64,
    ) -> Result<(Page, u64), Error> {
        Ok((self.load(&piece, level).await?, first))
    }

    /// The same, if all pages on the way are in the cache.
    pub(crate) fn find_now(&self, root: Root, block: u64) -> Option<Found> {
        let mut step = Step::first(root);
        loop {
            match step {
                Step::Found(found) => return Some(found),
                Step::Load(piece, level) => {
                    let page = self
                        .cache
                        .get(&piece.key())
                        .filter(|page| page.level() == level)?;
                    step = Step::below(page, level, block);
                }
            }
        }
    }
}

/// A step of the way from the root to a leaf.
enum Step {
    Load(Piece, u8),
    Found(Found),
}

impl Step {
    fn first(root: Root) -> Self {
        match (root.page, root.levels.checked_sub(1)) {
            (Some(piece), Some(level)) => Self::Load(piece, level),
            _ => Self::Found(Found::Hole { until: u64::MAX }),
        }
    }

    /// The step below a page of `level`.
    fn below(page: Page, level: u8, block: u64) -> Self {
        let first = block - block % span(level);
        let Some(next) = level.checked_sub(1) else {
            return Self::Found(Found::Leaf { page, first });
        };
        let below = span(next);
        let index = u8::try_from((block - first) / below).expect("a page has 256 slots");
        if let Some(child) = page.get(index) {
            return Self::Load(child, next);
        }
        let empty = page.empty_from(index).saturating_mul(below);
        let until = (first + u64::from(index) * below).saturating_add(empty);
        Self::Found(Found::Hole { until })
    }
}

/// A cache of so many bytes. Small ones are in one piece, so that one item never is too large. The part
/// `proven` is for items that were used again; new ones have to be used in the rest.
pub(crate) fn bounded<V: Clone, W: Weighter<(ObjectId, u32), V> + Clone>(
    capacity: u64,
    item: u64,
    proven: f64,
    weighter: W,
) -> Cache<(ObjectId, u32), V, W> {
    let items = usize::try_from(capacity / item).unwrap_or(usize::MAX);
    let options = OptionsBuilder::new()
        .estimated_items_capacity(items.clamp(1, 1 << 20))
        .weight_capacity(capacity)
        .hot_allocation(proven)
        .shards(if capacity / item < 1024 { 1 } else { 8 })
        .build()
        .expect("both capacities are given");
    Cache::with_options(
        options,
        weighter,
        quick_cache::DefaultHashBuilder::default(),
        quick_cache::sync::DefaultLifecycle::default(),
    )
}
