//! Blocks as records, and records as segments.

use super::Inner;
use crate::{
    Compression, Error,
    changes::Changes,
    compression::encode_record,
    format::{Codec, ObjectId, Piece, checksum, segment},
    map::Edit,
};
use bytes::Bytes;
use object_store::PutPayload;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes from which on blocks are encoded on another thread, even if only checksums are computed.
const ELSEWHERE: usize = 512 << 10;

/// A block, and its record unless it is one of zeroes.
pub(super) struct Encoded {
    index: u64,
    block: Bytes,
    record: Option<(Codec, Bytes, u64)>,
}

/// The objects of a commit that have records, and the changes of the map.
#[derive(Default)]
pub(super) struct Packed {
    pub(super) segments: Vec<(ObjectId, PutPayload)>,
    pub(super) edits: Vec<Edit>,
    /// For the cache.
    pub(super) records: Vec<(Piece, Bytes)>,
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
    pub(super) async fn encode(&self, blocks: Vec<(u64, Bytes)>) -> Result<Vec<Encoded>, Error> {
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

    /// Puts records together to segments, in the order of the disk.
    pub(super) fn pack(&self, changes: &Changes, blocks: Vec<Encoded>) -> Packed {
        let mut packed = Packed::default();
        packed.edits.extend(changes.holes().map(|blocks| Edit {
            blocks,
            record: None,
        }));
        let mut open: Option<(ObjectId, Vec<Bytes>, u32)> = None;
        for Encoded {
            index,
            block,
            record,
        } in blocks
        {
            let blocks = index..index + 1;
            let Some((codec, stored, checksum)) = record else {
                packed.edits.push(Edit {
                    blocks,
                    record: None,
                });
                continue;
            };
            let len = u32::try_from(stored.len()).expect("a block is small");
            if open
                .as_ref()
                .is_some_and(|(_, _, end)| end + len > self.options.segment_size)
            {
                packed.segments.extend(open.take().map(closed));
            }
            let (object, parts, end) = open.get_or_insert_with(|| {
                let id = self.state().next_object();
                (id, vec![segment::header(id)], segment::HEADER)
            });
            let piece = Piece {
                object: *object,
                offset: *end,
                len,
                codec,
                checksum,
            };
            *end += len;
            parts.push(stored);
            packed.records.push((piece, block));
            packed.edits.push(Edit {
                blocks,
                record: Some(piece),
            });
        }
        packed.segments.extend(open.map(closed));
        packed.edits.sort_by_key(|edit| edit.blocks.start);
        packed
    }
}

fn closed((id, parts, _): (ObjectId, Vec<Bytes>, u32)) -> (ObjectId, PutPayload) {
    (id, PutPayload::from_iter(parts))
}
