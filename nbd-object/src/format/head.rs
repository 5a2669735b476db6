//! The head: the only object that changes.

use super::{
    Codec, Fields, OBJECT_LIMIT, PAGE_LIMIT, Piece, SECTOR, VERSION, checksum, put_object,
};

const MAGIC: [u8; 8] = *b"NBDOHEAD";

/// The size limit of a head, in bytes. It is larger than a head, for later versions.
pub(crate) const HEAD_LIMIT: u64 = 4096;

/// Limit of counts, which go up by one: no disk gets there.
const COUNTS: u64 = 1 << 62;

/// The state of a disk. A snapshot is a copy of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// A random number of the disk's creation.
    pub(crate) disk: u64,
    /// In bytes; a multiple of a sector.
    pub(crate) size: u64,
    /// Blocks have two to the power of this many bytes: 4 to 64 KiB.
    pub(crate) block_shift: u8,
    /// Counts openings for writing.
    pub(crate) epoch: u64,
    /// A random number of the writer.
    pub(crate) nonce: u64,
    /// Counts changes of the head.
    pub(crate) generation: u64,
    /// Counts collections of garbage.
    pub(crate) collections: u64,
    /// Levels of pages below the head.
    pub(crate) levels: u8,
    /// The topmost page; the whole disk is a hole without it.
    pub(crate) root: Option<Piece>,
}

impl Head {
    pub(crate) fn block_size(&self) -> u64 {
        1 << self.block_shift
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block_size())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[
            VERSION,
            self.block_shift,
            self.levels,
            u8::from(self.root.is_some()),
        ]);
        out.extend_from_slice(&[0; 4]);
        for field in [
            self.disk,
            self.size,
            self.epoch,
            self.nonce,
            self.generation,
            self.collections,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        if let Some(root) = &self.root {
            put_object(&mut out, root.object);
            out.extend_from_slice(&root.offset.to_le_bytes());
            out.extend_from_slice(&root.len.to_le_bytes());
            out.extend_from_slice(&root.checksum.to_le_bytes());
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// # Errors
    ///
    /// The reason in words, of a version first, so that it can be named.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let version = bytes
            .strip_prefix(&MAGIC)
            .and_then(|rest| rest.first())
            .ok_or("this is no head of a disk: its first bytes are not NBDOHEAD")?;
        if *version != VERSION {
            return Err(format!(
                "the head has version {version}, and {VERSION} is known here"
            ));
        }
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or("the head is cut off")?;
        if checksum(body) != u64::from_le_bytes(*sum) {
            return Err("the checksum of the head is wrong".into());
        }
        body.get(MAGIC.len() + 1..)
            .and_then(|fields| Self::fields(&mut Fields(fields)))
            .ok_or("the head is cut off")?
            .checked()
    }

    fn fields(from: &mut Fields<'_>) -> Option<Result<Self, String>> {
        let (block_shift, levels, rooted, flags) =
            (from.u8()?, from.u8()?, from.u8()?, from.u32()?);
        if flags != 0 {
            return Some(Err(format!("the head has unknown flags {flags:#x}")));
        }
        let mut head = Self {
            disk: from.u64()?,
            size: from.u64()?,
            epoch: from.u64()?,
            nonce: from.u64()?,
            generation: from.u64()?,
            collections: from.u64()?,
            block_shift,
            levels,
            root: None,
        };
        if rooted != 0 {
            head.root = Some(Piece {
                object: from.object()?,
                offset: from.u32()?,
                len: from.u32()?,
                codec: Codec::Raw,
                checksum: from.u64()?,
            });
        }
        Some(if from.0.is_empty() {
            Ok(head)
        } else {
            Err("the head has bytes behind its end".into())
        })
    }
}

/// The levels of pages that `blocks` need.
pub(crate) fn levels_for(blocks: u64) -> u8 {
    let mut levels = 1;
    let mut span: u64 = 256;
    while span < blocks {
        span = span.saturating_mul(256);
        levels += 1;
    }
    levels
}

trait Checked {
    fn checked(self) -> Result<Head, String>;
}

impl Checked for Result<Head, String> {
    fn checked(self) -> Result<Head, String> {
        let head = self?;
        if !(12..=16).contains(&head.block_shift) {
            return Err(format!(
                "blocks of 2^{} bytes are not between 4 and 64 KiB",
                head.block_shift
            ));
        }
        if head.size > 1 << 62 || head.size % SECTOR != 0 {
            return Err(format!(
                "the size of {} bytes is no multiple of 512 up to 2^62",
                head.size
            ));
        }
        if [head.epoch, head.generation, head.collections]
            .iter()
            .any(|count| *count > COUNTS)
        {
            return Err("a count of the head is beyond all that can be".into());
        }
        if head.levels != levels_for(head.blocks()) {
            return Err(format!(
                "{} levels of pages do not fit {} bytes",
                head.levels, head.size
            ));
        }
        if let Some(root) = &head.root {
            let end = root.offset.checked_add(root.len);
            if root.len > PAGE_LIMIT || end.is_none_or(|end| end > OBJECT_LIMIT) {
                return Err(format!(
                    "a page of {} bytes at {} is out of bounds",
                    root.len, root.offset
                ));
            }
        }
        Ok(head)
    }
}
