//! The objects of a disk on object storage, from an attacker who can write to the bucket.

use crate::{
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
    match input.below(5) {
        0 => head(input.rest()),
        1 => page(input.below(8), input.rest()),
        2 => name(&String::from_utf8_lossy(input.rest())),
        3 => written_head(&mut input),
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
