//! The objects of a disk on object storage, from an attacker who can write to the bucket.

use crate::{
    compression::{decode_record, encode_record},
    format::{
        Codec, FANOUT, HEAD_LIMIT, Head, OBJECT_LIMIT, ObjectId, PAGE_LIMIT, Page, Piece, Slots,
        checksum, encode_page, levels_for, segment,
    },
    input::Input,
};
use bytes::Bytes;

/// Decodes any bytes as each kind of object, and encodes any values.
///
/// Decoded values are within the limits of the format, and are the same again after they were
/// encoded. Checksums of any bytes are made right, since they find damage and not forgery.
pub fn object_format(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(8) {
        0 => head(input.rest()),
        1 => page(input.below(8), input.rest()),
        2 => name(&String::from_utf8_lossy(input.rest())),
        3 => written_head(&mut input),
        5 => record(&mut input),
        6 => spoiled_record(&mut input),
        7 => bomb(&mut input),
        _ => written_page(&mut input),
    }
}

fn head(bytes: &[u8]) {
    assert!(!matches!(Head::decode(bytes), Err(reason) if reason.is_empty()));
    let sum = checksum(bytes).to_le_bytes();
    let Ok(head) = Head::decode(&[bytes, &sum].concat()) else {
        return;
    };
    assert!(head.size <= 1 << 62 && head.blocks() <= 1 << 50);
    assert!((1 << 12..=1 << 16).contains(&head.block_size()));
    assert!(head.levels <= 7 && head.levels == levels_for(head.blocks()));
    if let Some(root) = head.root {
        assert!(root.len <= PAGE_LIMIT && root.range().end <= OBJECT_LIMIT.into());
    }
    let written = head.encode();
    assert!(written.len() as u64 <= HEAD_LIMIT);
    assert_eq!(Head::decode(&written), Ok(head));
}

fn page(level: usize, bytes: &[u8]) {
    let level = u8::try_from(level).expect("there are few levels");
    let Ok(page) = Page::decode(Bytes::copy_from_slice(bytes), level) else {
        return;
    };
    assert!(page.level() == level && page.len() <= PAGE_LIMIT as usize);
    let slots = page.slots();
    let mut used = page.iter();
    for index in 0..=u8::MAX {
        let slot = page.get(index);
        assert_eq!(slot, slots[usize::from(index)]);
        let empty = slots[usize::from(index)..]
            .iter()
            .take_while(|slot| slot.is_none());
        let empty = empty.count() as u64;
        assert!(page.empty_from(index) == empty && empty + u64::from(index) <= FANOUT);
        if let Some(piece) = slot {
            assert!(piece.len > 0 && piece.range().end <= OBJECT_LIMIT.into());
            assert_eq!(used.next(), Some((index, piece)));
        }
    }
    assert!(used.next().is_none());
    rewritten(level, &slots);
}

/// Encodes slots, which are within the limits, and decodes them again.
fn rewritten(level: u8, slots: &Slots) {
    let Some(bytes) = encode_page(level, slots) else {
        return assert!(slots.iter().all(Option::is_none));
    };
    assert!(bytes.len() <= PAGE_LIMIT as usize);
    let page = Page::decode(bytes, level).expect("it is a page");
    assert_eq!(page.slots(), *slots);
}

fn name(text: &str) {
    if let Some((kind, id)) = ObjectId::parse(text) {
        assert_eq!(id.name(kind), text);
    }
}

fn piece(input: &mut Input<'_>, limit: u32) -> Piece {
    let offset = input.u32() % OBJECT_LIMIT;
    Piece {
        // A few objects, so that slots share them.
        object: ObjectId {
            epoch: input.byte().into(),
            nonce: (input.byte() % 4).into(),
            number: 1,
        },
        offset,
        len: 1 + input.u32() % limit.min(OBJECT_LIMIT - offset),
        codec: Codec::Raw,
        checksum: u64::MAX - u64::from(offset),
    }
}

fn written_head(input: &mut Input<'_>) {
    let block_shift = 12 + input.byte() % 5;
    let size = (input.u64() >> 2 >> (input.byte() % 54)) / 512 * 512;
    let levels = levels_for(size.div_ceil(1 << block_shift));
    let head = Head {
        disk: input.u64(),
        size,
        block_shift,
        epoch: input.u64() >> 2,
        nonce: input.u64(),
        generation: input.u64() >> 2,
        collections: input.u64() >> 2,
        levels,
        root: input.flag().then(|| piece(input, PAGE_LIMIT)),
    };
    let written = head.encode();
    assert!(written.len() as u64 <= HEAD_LIMIT);
    assert_eq!(Head::decode(&written), Ok(head));
}

fn written_page(input: &mut Input<'_>) {
    let level = input.byte() % 8;
    let mut slots = Slots::from([None; 256]);
    while !input.is_empty() {
        let index = usize::from(input.byte());
        let piece = piece(input, OBJECT_LIMIT);
        assert_eq!(
            segment::header(piece.object).len(),
            segment::HEADER as usize
        );
        slots[index] = Some(piece);
    }
    rewritten(level, &slots);
}

/// The length of a block.
fn block_len(input: &mut Input<'_>) -> usize {
    4096 << input.below(5)
}

/// Decodes a record, which has no more memory than a block whatever it says of itself.
fn decode(stored: &[u8], len: usize) -> Option<Bytes> {
    let decoded = decode_record(Codec::Zstd, Bytes::copy_from_slice(stored), len);
    let block = match decoded.expect("zstd is there") {
        Ok(block) => block,
        Err(reason) => {
            assert!(!reason.is_empty());
            return None;
        }
    };
    assert_eq!(block.len(), len);
    let memory = block.try_into_mut().expect("it has one owner");
    assert!(memory.capacity() <= len);
    Some(memory.freeze())
}

/// Any bytes, behind the magic number or not.
fn record(input: &mut Input<'_>) {
    let len = block_len(input);
    let magic: &[u8] = if input.flag() { &ZSTD_MAGIC } else { &[] };
    decode(&[magic, input.bytes()].concat(), len);
}

/// A record as it is written, and then cut off, changed, or with something behind it.
fn spoiled_record(input: &mut Input<'_>) {
    let len = block_len(input);
    let (level, cut) = (1 + i32::from(input.byte() % 9), usize::from(input.u16()));
    let changes: Vec<_> = (0..input.below(4))
        .map(|_| (usize::from(input.u16()), input.byte()))
        .collect();
    let behind = if input.flag() { input.bytes() } else { &[] };
    let pattern = [input.bytes(), &[0]].concat();
    let block: Bytes = pattern.iter().copied().cycle().take(len).collect();
    let (codec, stored) = encode_record(&block, Some(level));
    if codec == Codec::Raw {
        return assert_eq!(stored, block);
    }
    assert_eq!(decode(&stored, len), Some(block));
    // As if it was the record of a block of another size.
    assert!(decode(&stored, len / 2).is_none() && decode(&stored, len * 2).is_none());
    if let Some(part) = stored.get(..cut % stored.len()) {
        assert!(decode(part, len).is_none());
    }
    let mut spoiled = [&stored, behind].concat();
    for (at, change) in changes {
        let at = at % spoiled.len();
        spoiled[at] ^= change;
    }
    decode(&spoiled, len);
}

/// The four bytes with which a frame of zstd begins: RFC 8878, section 3.1.1.
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// Number of bytes of a block of zstd at most.
const ZSTD_BLOCK: usize = 128 << 10;

/// Blocks of one byte that is repeated, in a frame that says any length or window: kilobytes for
/// gigabytes.
fn bomb(input: &mut Input<'_>) {
    const RLE: usize = 1;
    let len = block_len(input);
    let mut frame = ZSTD_MAGIC.to_vec();
    let mut claimed = None;
    match input.flag() {
        true => {
            // A single segment, with a length of 8 bytes.
            let content = input.u64() >> (input.byte() % 64);
            frame.push(0b1110_0000);
            frame.extend(content.to_le_bytes());
            claimed = Some(content);
        }
        // A window of up to 3.75 TiB.
        false => frame.extend([0, input.byte()]),
    }
    let (count, size) = (
        usize::from(input.u16() % 300),
        1 + input.u32() as usize % ZSTD_BLOCK,
    );
    let byte = input.byte();
    for left in (0..count).rev() {
        let header = usize::from(left == 0) | RLE << 1 | size << 3;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(byte);
    }
    if let Some(block) = decode(&frame, len) {
        // All ones claim nothing.
        let is_right = |claimed| claimed == len as u64 || claimed == u64::MAX;
        assert!(count * size == len && claimed.is_none_or(is_right));
        assert!(block.iter().all(|found| *found == byte));
    }
}
