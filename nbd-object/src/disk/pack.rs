//! Blocks as records, and records as segments.

use super::Inner;
use crate::{
    Compression, Error,
    changes::Changes,
    compression::encode_record,
    format::{Codec, Kind, ObjectId, Piece, checksum, segment},
    map::{Edit, Root},
    puts::{Made, Puts},
};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::PutPayload;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes from which on blocks are encoded on another thread, even if only checksums are computed.
const ELSEWHERE: usize = 512 << 10;

/// Blocks that are completed and encoded together, and the number of such groups at the same time.
const GROUP: usize = 64;
const GROUPS: usize = 4;

/// A block, and its record unless it is one of zeroes.
struct Encoded {
    index: u64,
    block: Bytes,
    record: Option<(Codec, Bytes, u64)>,
}

/// A segment that is not full.
struct Open {
    id: ObjectId,
    parts: Vec<Bytes>,
    end: u32,
}

fn encode(blocks: Vec<(u64, Bytes)>, level: Option<i32>) -> Vec<Encoded> {
    let encode = |(index, block): (u64, Bytes)| {
        let record = (block[..] != ZEROES[..block.len()]).then(|| {
            let (codec, stored) = encode_record(&block, level);
            let sum = checksum(&stored);
            (codec, stored, sum)
        });
        Encoded {
            index,
            block,
            record,
        }
    };
    blocks.into_iter().map(encode).collect()
}

impl Inner {
    /// Compresses blocks and computes their checksums, where that holds up no task.
    async fn encode(&self, blocks: Vec<(u64, Bytes)>) -> Result<Vec<Encoded>, Error> {
        let level = match self.options.compression {
            Compression::Off => None,
            Compression::Zstd(level) => Some(level),
        };
        if level.is_none() && blocks.len() * self.block_size < ELSEWHERE {
            return Ok(encode(blocks, level));
        }
        self.objects
            .runtime
            .compute(move || encode(blocks, level))
            .await
    }

    /// Has the written blocks of this commit put, in segments and in the order of the disk, and returns
    /// the changes of the map.
    pub(super) async fn pack(&self, root: Root, puts: &Puts) -> Result<Vec<Edit>, Error> {
        let (blocks, holes) = self.frozen(|frozen| {
            let blocks: Vec<u64> = frozen.blocks().collect();
            (blocks, frozen.holes().collect::<Vec<_>>())
        });
        let hole = |blocks| Edit {
            blocks,
            record: None,
        };
        let mut edits: Vec<Edit> = holes.into_iter().map(hole).collect();
        let groups: Vec<_> = blocks
            .chunks(GROUP)
            .map(|some| self.encoded(root, some))
            .collect();
        let mut groups = stream::iter(groups).buffered(GROUPS);
        let mut open: Option<Open> = None;
        while let Some(group) = groups.try_next().await? {
            for Encoded {
                index,
                block,
                record,
            } in group
            {
                let Some((codec, stored, checksum)) = record else {
                    edits.push(hole(index..index + 1));
                    continue;
                };
                let len = u32::try_from(stored.len()).expect("a block is small");
                let is_full = |open: &mut Open| open.end + len > self.options.segment_size;
                if let Some(full) = open.take_if(is_full) {
                    puts.put(full.close()).await?;
                }
                let open = open.get_or_insert_with(|| Open::new(self.state().next_object()));
                let record = Piece {
                    object: open.id,
                    offset: open.end,
                    len,
                    codec,
                    checksum,
                };
                open.end += len;
                open.parts.push(stored);
                // No page refers to it before the head has changed.
                self.records.insert(&record, block);
                edits.push(Edit {
                    blocks: index..index + 1,
                    record: Some(record),
                });
            }
        }
        if let Some(last) = open {
            puts.put(last.close()).await?;
        }
        edits.sort_by_key(|edit| edit.blocks.start);
        Ok(edits)
    }

    /// Blocks of this commit, completed by stored bytes where only a part was written.
    async fn encoded(&self, root: Root, blocks: &[u64]) -> Result<Vec<Encoded>, Error> {
        let parts: Vec<u64> = self.frozen(|frozen| {
            let is_part = |index: &u64| frozen.whole(*index).is_none();
            blocks.iter().copied().filter(is_part).collect()
        });
        let stored = self.stored(root, &parts).await?;
        for (index, base) in parts.into_iter().zip(stored) {
            self.frozen(|frozen| frozen.complete(index, base.as_ref()));
        }
        let whole = self.frozen(|frozen| {
            let whole = |index: &u64| Some((*index, frozen.whole(*index)?));
            blocks.iter().filter_map(whole).collect()
        });
        self.encode(whole).await
    }

    /// The changes of the commit that is under way.
    fn frozen<T>(&self, work: impl FnOnce(&mut Changes) -> T) -> T {
        let mut state = self.state();
        work(state.frozen.as_mut().expect("a commit is under way"))
    }
}

impl Open {
    fn new(id: ObjectId) -> Self {
        Self {
            id,
            parts: vec![segment::header(id)],
            end: segment::HEADER,
        }
    }

    fn close(self) -> Made {
        Made {
            kind: Kind::Segment,
            id: self.id,
            payload: PutPayload::from_iter(self.parts),
        }
    }
}
