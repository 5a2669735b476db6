//! Compaction: the data of objects that are mostly garbage is written anew.

use crate::{
    Disk, Error,
    collect::{Used, mark, reachable_from_snapshots},
    format::{Kind, ObjectId, Piece, segment},
    map::{Found, Root, Walk},
};
use futures_util::TryStreamExt;
use std::collections::HashSet;

/// The result of a compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// Objects that were mostly garbage.
    pub objects: u64,
    /// Blocks that were written anew.
    pub blocks: u64,
    /// Blocks that were left, because they had changed meanwhile.
    pub changed: u64,
}

/// Blocks that are got and written at once.
const AT_ONCE: usize = 64;

impl Disk {
    /// Writes the blocks of objects anew of which less than `percent` is in use, so that the next
    /// [`collect_garbage`](Self::collect_garbage) deletes them. Reads and writes go on meanwhile.
    /// Objects that a snapshot refers to are left alone, since that would free nothing.
    ///
    /// It costs a walk over all pages, as a collection does, and a get and a put for each MiB of these
    /// blocks or so. With 50, objects take no more than twice the space of the disk afterwards.
    ///
    /// # Errors
    ///
    /// When a page or a block cannot be read, and as [`flush`](Self::flush).
    pub async fn compact(&self, percent: u8) -> Result<Compacted, Error> {
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let _alone = self.inner.maintenance.lock().await;
        self.flush().await?;
        let root = self.inner.state().root();
        let mut walk = Walk::default();
        walk.begin(root);
        let used = mark(&self.inner, walk).await?;
        let kept = mark(
            &self.inner,
            reachable_from_snapshots(&self.inner.objects).await?,
        )
        .await?;
        let sparse = self.sparse(&used, &kept, percent).await?;
        let mut compacted = Compacted {
            objects: sparse.len() as u64,
            ..Compacted::default()
        };
        if !sparse.is_empty() {
            self.rewrite(root, &sparse, &mut compacted).await?;
            self.flush().await?;
        }
        Ok(compacted)
    }

    /// Objects of which less than `percent` is in use, and nothing by snapshots.
    async fn sparse(
        &self,
        used: &Used,
        kept: &Used,
        percent: u8,
    ) -> Result<HashSet<(Kind, ObjectId)>, Error> {
        let objects = &self.inner.objects;
        let header = u64::from(segment::HEADER);
        let mut sparse = HashSet::new();
        for kind in Kind::ALL {
            let mut list = objects.list(kind.directory());
            while let Some(meta) = list.try_next().await? {
                let name = objects.name_of(&meta.location);
                let Some(object) = name.as_deref().and_then(ObjectId::parse) else {
                    continue;
                };
                let part = used.get(&object).filter(|_| !kept.contains_key(&object));
                let limit = meta.size.saturating_mul(u64::from(percent));
                if part.is_some_and(|bytes| (bytes + header).saturating_mul(100) < limit) {
                    sparse.insert(object);
                }
            }
        }
        Ok(sparse)
    }

    /// Writes the blocks with a record in these objects, and for a page that is in one of them a block
    /// below it, which brings a new page and new ones above it.
    async fn rewrite(
        &self,
        root: Root,
        sparse: &HashSet<(Kind, ObjectId)>,
        compacted: &mut Compacted,
    ) -> Result<(), Error> {
        let mut walk = Walk::default();
        walk.begin(root);
        let mut wanted = Vec::new();
        // Pages below which something has to change, so that they are made anew.
        let mut touched: HashSet<(ObjectId, u32)> = HashSet::new();
        loop {
            let some = walk.next(&self.inner.pages, &mut Vec::new()).await;
            let end = some.is_empty();
            for (place, page) in some {
                let page = page?;
                let mut touch =
                    touched.remove(&place.piece.key()) || sparse.contains(&place.object());
                if place.level > 0 {
                    if touch {
                        touched.extend(page.iter().next().map(|(_, piece)| piece.key()));
                    }
                    continue;
                }
                for (index, piece) in page.iter() {
                    if std::mem::take(&mut touch) || sparse.contains(&(Kind::Segment, piece.object))
                    {
                        wanted.push((place.first.saturating_add(u64::from(index)), piece));
                    }
                }
            }
            let full = wanted.len() / AT_ONCE * AT_ONCE;
            let ready = if end { wanted.len() } else { full };
            let batch: Vec<_> = wanted.drain(..ready).collect();
            for batch in batch.chunks(AT_ONCE) {
                self.rewrite_blocks(batch, compacted).await?;
            }
            if end {
                return Ok(());
            }
        }
    }

    async fn rewrite_blocks(
        &self,
        wanted: &[(u64, Piece)],
        compacted: &mut Compacted,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        let pieces: Vec<Piece> = wanted.iter().map(|(_, piece)| *piece).collect();
        let blocks = inner.records.blocks(&pieces).await?;
        for ((block, piece), bytes) in wanted.iter().zip(blocks) {
            // The page may have gone from the cache, and is needed below without waiting.
            let root = inner.state().root();
            inner.find(root, *block).await?;
            let offset = block.saturating_mul(inner.block_size as u64);
            let mut still = false;
            self.change(offset, 0, |state| {
                let now = match inner.pages.find_now(state.root(), *block) {
                    Some(Found::Leaf { page, first }) => u8::try_from(block - first)
                        .ok()
                        .and_then(|index| page.get(index)),
                    _ => None,
                };
                // Newer bytes are in memory, or in another record.
                still = now == Some(*piece) && !state.has_changes_of(*block);
                if still {
                    state.rewrite(offset, &bytes);
                }
            })
            .await?;
            compacted.blocks += u64::from(still);
            compacted.changed += u64::from(!still);
        }
        Ok(())
    }
}
