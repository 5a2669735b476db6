//! The bytes in the store, which `docs/format.md` describes.
//!
//! Everything here takes bytes that an attacker may have written: a length is compared before
//! memory is taken, and a number is never an index before it is compared.

mod head;
mod page;
pub(crate) mod segment;

pub(crate) use head::{HEAD_LIMIT, Head, levels_for};
pub(crate) use page::{FANOUT, PAGE_LIMIT, Page, Slots, encode_page};

use twox_hash::XxHash3_64;

/// The version of all formats here.
pub(crate) const VERSION: u8 = 1;

/// The smallest unit of a write, in bytes.
pub(crate) const SECTOR: u64 = 512;

/// The size limit of an object with records or pages, in bytes.
pub(crate) const OBJECT_LIMIT: u32 = 1 << 30;

pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The name of an immutable object. Numbers are those of one writer, which has its epoch alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectId {
    pub(crate) epoch: u64,
    pub(crate) nonce: u64,
    pub(crate) number: u64,
}

/// The kinds of immutable objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Map,
    Segment,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Map, Self::Segment];

    pub(crate) const fn directory(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Segment => "seg",
        }
    }
}

impl ObjectId {
    /// The path below the disk's prefix.
    pub(crate) fn name(self, kind: Kind) -> String {
        let Self {
            epoch,
            nonce,
            number,
        } = self;
        format!(
            "{}/{epoch:016x}-{nonce:016x}/{number:08x}",
            kind.directory()
        )
    }

    /// The object of a path below the disk's prefix.
    pub(crate) fn parse(name: &str) -> Option<(Kind, Self)> {
        let mut parts = name.split('/');
        let kind = parts.next()?;
        let kind = Kind::ALL
            .into_iter()
            .find(|known| known.directory() == kind)?;
        let (epoch, nonce) = parts.next()?.split_once('-')?;
        let id = Self {
            epoch: u64::from_str_radix(epoch, 16).ok()?,
            nonce: u64::from_str_radix(nonce, 16).ok()?,
            number: u64::from_str_radix(parts.next()?, 16).ok()?,
        };
        // The exact name and no other spelling of it.
        (id.name(kind) == name).then_some((kind, id))
    }
}

/// The encoding of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Codec {
    Raw,
    Zstd,
}

impl Codec {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// A reference to bytes of an immutable object: a record, or a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Piece {
    pub(crate) object: ObjectId,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) codec: Codec,
    pub(crate) checksum: u64,
}

impl Piece {
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        let start = u64::from(self.offset);
        start..start + u64::from(self.len)
    }

    /// The key of a cache: no other bytes of any disk have it, unless the disk was copied.
    pub(crate) fn key(&self) -> (ObjectId, u32) {
        (self.object, self.offset)
    }
}

/// Takes fixed-size fields from the front of bytes.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn object(&mut self) -> Option<ObjectId> {
        Some(ObjectId {
            epoch: self.u64()?,
            nonce: self.u64()?,
            number: self.u64()?,
        })
    }
}

pub(crate) fn put_object(out: &mut Vec<u8>, id: ObjectId) {
    for field in [id.epoch, id.nonce, id.number] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
