//! Pages of the map: 256 slots each, of which the leaves' refer to records and the others' to pages.

use super::{Codec, Fields, OBJECT_LIMIT, ObjectId, Piece, VERSION, put_object};
use bytes::Bytes;
use std::collections::HashMap;

const MAGIC: [u8; 4] = *b"NBDP";

/// The number of slots in a page.
pub(crate) const FANOUT: u64 = 256;

const BITMAP: usize = 32;
const HEADER: usize = 8 + BITMAP;
const OBJECT: usize = 24;
const SLOT: usize = 19;

/// The size limit of a page, in bytes: that of one whose 256 slots are in as many objects.
#[expect(
    clippy::cast_possible_truncation,
    reason = "it is a constant of some 11,000"
)]
pub(crate) const PAGE_LIMIT: u32 = (HEADER + 256 * (OBJECT + SLOT)) as u32;

/// The slots of a page that is being changed.
pub(crate) type Slots = Box<[Option<Piece>; 256]>;

/// A page whose bytes were found to be right. They stay encoded, which takes less memory.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    bytes: Bytes,
    /// The beginning of the slots.
    slots: usize,
}

impl Page {
    /// # Errors
    ///
    /// The reason in words.
    pub(crate) fn decode(bytes: Bytes, level: u8) -> Result<Self, String> {
        let mut from = Fields(&bytes);
        let header = (
            from.take::<4>(),
            from.u8(),
            from.u8(),
            from.u16(),
            from.take::<BITMAP>(),
        );
        let (Some(magic), Some(version), Some(found), Some(objects), Some(bitmap)) = header else {
            return Err("the page is cut off".into());
        };
        if magic != MAGIC || version != VERSION {
            return Err(format!("a page of version {VERSION} was expected"));
        }
        if found != level {
            return Err(format!(
                "a page of level {level} was expected, and {found} found"
            ));
        }
        let count: u32 = bitmap.iter().map(|byte| byte.count_ones()).sum();
        let (objects, count) = (usize::from(objects), count as usize);
        let slots = HEADER + objects * OBJECT;
        if bytes.len() != slots + count * SLOT || objects > count {
            return Err(format!(
                "{count} slots in {objects} objects do not fit a page of {} bytes",
                bytes.len()
            ));
        }
        let page = Self { bytes, slots };
        for at in 0..count {
            page.slot(at)
                .ok_or_else(|| format!("slot {at} of a page is out of bounds"))?;
        }
        Ok(page)
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn level(&self) -> u8 {
        self.bytes[5]
    }

    fn bitmap(&self) -> &[u8] {
        &self.bytes[8..HEADER]
    }

    fn is_set(&self, index: u8) -> bool {
        self.bitmap()[usize::from(index / 8)] & (1 << (index % 8)) != 0
    }

    /// The slot of a place among 256.
    pub(crate) fn get(&self, index: u8) -> Option<Piece> {
        if !self.is_set(index) {
            return None;
        }
        let whole = usize::from(index / 8);
        let before: u32 = self.bitmap()[..whole]
            .iter()
            .map(|byte| byte.count_ones())
            .sum();
        let below = self.bitmap()[whole] & ((1u8 << (index % 8)) - 1);
        self.slot((before + below.count_ones()) as usize)
    }

    /// The number of empty slots from `index` on.
    pub(crate) fn empty_from(&self, index: u8) -> u64 {
        let used = (index..=u8::MAX).position(|index| self.is_set(index));
        used.unwrap_or_else(|| 256 - usize::from(index)) as u64
    }

    /// The slots that are in use, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u8, Piece)> + '_ {
        (0..=u8::MAX)
            .filter(|index| self.is_set(*index))
            .enumerate()
            .filter_map(|(at, index)| self.slot(at).map(|piece| (index, piece)))
    }

    pub(crate) fn slots(&self) -> Slots {
        let mut slots = Slots::from([None; 256]);
        for (index, piece) in self.iter() {
            slots[usize::from(index)] = Some(piece);
        }
        slots
    }

    /// The slot at a place in the encoded ones; `None` where it is out of bounds.
    fn slot(&self, at: usize) -> Option<Piece> {
        let mut from = Fields(self.bytes.get(self.slots + at * SLOT..)?);
        let (object, codec) = (usize::from(from.u16()?), Codec::from_byte(from.u8()?)?);
        let (offset, len, checksum) = (from.u32()?, from.u32()?, from.u64()?);
        let table = self.bytes.get(HEADER..self.slots)?;
        let object = Fields(table.get(object * OBJECT..)?).object()?;
        (offset.checked_add(len)? <= OBJECT_LIMIT && len > 0).then_some(Piece {
            object,
            offset,
            len,
            codec,
            checksum,
        })
    }
}

/// The bytes of a page; none if all slots are empty.
pub(crate) fn encode_page(level: u8, slots: &[Option<Piece>; 256]) -> Option<Bytes> {
    let mut bitmap = [0u8; BITMAP];
    let mut objects: Vec<ObjectId> = Vec::new();
    let mut places: HashMap<ObjectId, u16> = HashMap::new();
    let mut body = Vec::new();
    for (index, piece) in slots.iter().enumerate() {
        let Some(piece) = piece else { continue };
        bitmap[index / 8] |= 1 << (index % 8);
        let place = *places.entry(piece.object).or_insert_with(|| {
            objects.push(piece.object);
            u16::try_from(objects.len() - 1).expect("there are 256 slots")
        });
        body.extend_from_slice(&place.to_le_bytes());
        body.push(piece.codec.to_byte());
        body.extend_from_slice(&piece.offset.to_le_bytes());
        body.extend_from_slice(&piece.len.to_le_bytes());
        body.extend_from_slice(&piece.checksum.to_le_bytes());
    }
    if objects.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(HEADER + objects.len() * OBJECT + body.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, level]);
    let count = u16::try_from(objects.len()).expect("there are 256 slots");
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&bitmap);
    for object in objects {
        put_object(&mut out, object);
    }
    out.extend_from_slice(&body);
    Some(out.into())
}
