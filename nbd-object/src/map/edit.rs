//! Changes of the map: new pages beside the old ones, from the leaves up.

use super::{Pages, Root, span};
use crate::{
    Error,
    format::{FANOUT, Kind, ObjectId, Page, Piece, Slots, checksum, encode_page, segment},
    puts::{Made, Puts},
};
use bytes::Bytes;
use futures_util::{
    future::{BoxFuture, FutureExt},
    stream::{self, StreamExt, TryStreamExt},
};
use object_store::PutPayload;
use std::{ops::Range, sync::Arc};
use tokio::sync::{Mutex, Semaphore};

/// A run of blocks that becomes a hole, or a block that gets a record.
#[derive(Clone, Debug)]
pub(crate) struct Edit {
    pub(crate) blocks: Range<u64>,
    pub(crate) record: Option<Piece>,
}

/// Limit of an object with pages, in bytes.
const OBJECT_SIZE: usize = 1 << 20;

/// Children of a page that are worked on at the same time.
const CONCURRENT: usize = 32;

/// Leaves that are worked on at the same time, below all of these.
const LEAVES: usize = 256;

/// Has the pages of a map with `edits` put, which are in order and do not overlap, and returns the new
/// root. A head may refer to it when they are put.
pub(crate) async fn edit(
    pages: &Arc<Pages>,
    root: Root,
    levels: u8,
    edits: &[Edit],
    mut next: impl FnMut() -> ObjectId + Send,
    puts: &Puts,
) -> Result<Root, Error> {
    let editor = Editor {
        pages,
        leaves: Semaphore::new(LEAVES),
        writer: Mutex::new(Writer {
            next: &mut next,
            open: None,
            puts,
        }),
    };
    let page = match levels.checked_sub(1) {
        Some(top) => editor.apply_above(root, top, edits).await?,
        None => None,
    };
    editor.writer.into_inner().close().await?;
    Ok(Root { page, levels })
}

struct Editor<'a> {
    pages: &'a Arc<Pages>,
    leaves: Semaphore,
    writer: Mutex<Writer<'a>>,
}

impl Editor<'_> {
    /// The page at `piece` with the edits that are in its span, which begins at `first`.
    fn apply<'f>(
        &'f self,
        piece: Option<Piece>,
        level: u8,
        first: u64,
        edits: &'f [Edit],
    ) -> BoxFuture<'f, Result<Option<Piece>, Error>> {
        async move {
            if piece.is_none() && edits.iter().all(|edit| edit.record.is_none()) {
                return Ok(None);
            }
            let end = first.saturating_add(span(level));
            if let [
                Edit {
                    blocks,
                    record: None,
                },
            ] = edits
                && blocks.start <= first
                && blocks.end >= end
            {
                return Ok(None);
            }
            let _leaf = match level {
                0 => Some(self.leaves.acquire().await),
                _ => None,
            };
            let mut slots = match &piece {
                Some(piece) => self.pages.load(piece, level).await?.slots(),
                None => Slots::from([None; 256]),
            };
            let before = slots.clone();
            if level == 0 {
                for edit in edits {
                    let start = edit.blocks.start.max(first) - first;
                    let stop = edit.blocks.end.min(end) - first;
                    for index in start..stop {
                        slots[place(index)] = edit.record;
                    }
                }
            } else {
                let jobs = children(&slots, level, first, edits);
                self.apply_children(&mut slots, level, jobs).await?;
            }
            if *slots == *before {
                return Ok(piece);
            }
            self.add(level, slots).await
        }
        .boxed()
    }

    /// The page of a level that the map may not have yet, because the disk has grown: then the map is
    /// the first child.
    fn apply_above<'f>(
        &'f self,
        root: Root,
        level: u8,
        edits: &'f [Edit],
    ) -> BoxFuture<'f, Result<Option<Piece>, Error>> {
        async move {
            if level < root.levels {
                return self.apply(root.page, level, 0, edits).await;
            }
            let below = level - 1;
            let inside = edits.partition_point(|edit| edit.blocks.start < span(below));
            let mut slots = Slots::from([None; 256]);
            slots[0] = self.apply_above(root, below, &edits[..inside]).await?;
            let mut jobs = children(&slots, level, 0, edits);
            jobs.retain(|job| job.index > 0);
            self.apply_children(&mut slots, level, jobs).await?;
            self.add(level, slots).await
        }
        .boxed()
    }

    async fn apply_children(
        &self,
        slots: &mut Slots,
        level: u8,
        jobs: Vec<Job<'_>>,
    ) -> Result<(), Error> {
        let jobs: Vec<_> = jobs
            .into_iter()
            .map(|job| self.child(job, level - 1))
            .collect();
        let changed: Vec<(usize, Option<Piece>)> = stream::iter(jobs)
            .buffer_unordered(CONCURRENT)
            .try_collect()
            .await?;
        for (index, below) in changed {
            slots[index] = below;
        }
        Ok(())
    }

    async fn child(&self, job: Job<'_>, level: u8) -> Result<(usize, Option<Piece>), Error> {
        Ok((
            job.index,
            self.apply(job.piece, level, job.first, job.edits).await?,
        ))
    }

    async fn add(&self, level: u8, slots: Slots) -> Result<Option<Piece>, Error> {
        let Some(bytes) = encode_page(level, &slots) else {
            return Ok(None);
        };
        drop(slots);
        let piece = self.writer.lock().await.add(&bytes).await?;
        if let Ok(page) = Page::decode(bytes, level) {
            self.pages.insert(&piece, page);
        }
        Ok(Some(piece))
    }
}

struct Job<'a> {
    index: usize,
    piece: Option<Piece>,
    first: u64,
    edits: &'a [Edit],
}

/// The children of a page that have edits.
fn children<'a>(slots: &Slots, level: u8, first: u64, edits: &'a [Edit]) -> Vec<Job<'a>> {
    let below = span(level - 1);
    let mut jobs = Vec::new();
    for index in 0..FANOUT {
        let start = first.saturating_add(index.saturating_mul(below));
        let end = start.saturating_add(below);
        let from = edits.partition_point(|edit| edit.blocks.end <= start);
        let to = edits.partition_point(|edit| edit.blocks.start < end);
        if from < to {
            let index = place(index);
            jobs.push(Job {
                index,
                piece: slots[index],
                first: start,
                edits: &edits[from..to],
            });
        }
    }
    jobs
}

fn place(index: u64) -> usize {
    usize::try_from(index).expect("a page has 256 slots")
}

/// Collects pages to objects.
struct Writer<'a> {
    next: &'a mut (dyn FnMut() -> ObjectId + Send),
    open: Option<Open>,
    puts: &'a Puts,
}

struct Open {
    id: ObjectId,
    parts: Vec<Bytes>,
    len: usize,
}

impl Writer<'_> {
    async fn add(&mut self, page: &Bytes) -> Result<Piece, Error> {
        let full = |open: &Open| open.len + page.len() > OBJECT_SIZE;
        if self.open.as_ref().is_some_and(full) {
            self.close().await?;
        }
        let next = &mut self.next;
        let open = self.open.get_or_insert_with(|| {
            let id = next();
            let header = segment::header(id);
            Open {
                id,
                len: header.len(),
                parts: vec![header],
            }
        });
        let piece = Piece {
            object: open.id,
            offset: u32::try_from(open.len).expect("an object with pages is small"),
            len: u32::try_from(page.len()).expect("a page is small"),
            codec: crate::format::Codec::Raw,
            checksum: checksum(page),
        };
        open.len += page.len();
        open.parts.push(page.clone());
        Ok(piece)
    }

    async fn close(&mut self) -> Result<(), Error> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let made = Made {
            kind: Kind::Map,
            id: open.id,
            payload: PutPayload::from_iter(open.parts),
        };
        self.puts.put(made).await
    }
}
