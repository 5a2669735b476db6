use super::*;
use bytes::Bytes;
use proptest::prelude::*;

fn head() -> Head {
    Head {
        disk: 7,
        size: 1 << 40,
        block_shift: 16,
        epoch: 3,
        nonce: 99,
        generation: 17,
        collections: 2,
        levels: 3,
        root: Some(piece(1)),
    }
}

fn piece(number: u64) -> Piece {
    Piece {
        object: ObjectId {
            epoch: 3,
            nonce: 99,
            number,
        },
        offset: 32,
        len: 5000,
        codec: Codec::Raw,
        checksum: 0x0123_4567_89ab_cdef,
    }
}

#[test]
fn a_head_has_the_bytes_that_are_documented() {
    let bytes = head().encode();
    assert_eq!(bytes.len(), 16 + 6 * 8 + 24 + 4 + 4 + 8 + 8);
    assert_eq!(&bytes[..16], b"NBDOHEAD\x01\x10\x03\x01\0\0\0\0");
    assert_eq!(bytes[24..32], (1u64 << 40).to_le_bytes());
    assert_eq!(Head::decode(&bytes).unwrap(), head());
    let empty = Head {
        root: None,
        ..head()
    };
    assert_eq!(Head::decode(&empty.encode()).unwrap(), empty);
}

#[test]
fn a_head_of_another_version_or_with_values_out_of_bounds_is_refused_by_name() {
    let mut bytes = head().encode();
    bytes[8] = 2;
    assert!(Head::decode(&bytes).unwrap_err().contains("version 2"));
    for (bad, word) in [
        (
            Head {
                block_shift: 30,
                ..head()
            },
            "blocks",
        ),
        (
            Head {
                size: 100,
                ..head()
            },
            "size",
        ),
        (
            Head {
                size: 1 << 63,
                ..head()
            },
            "size",
        ),
        (
            Head {
                levels: 2,
                ..head()
            },
            "levels",
        ),
        (
            Head {
                epoch: u64::MAX,
                ..head()
            },
            "count",
        ),
        (
            Head {
                root: Some(Piece {
                    len: 1 << 20,
                    ..piece(1)
                }),
                ..head()
            },
            "page",
        ),
        (
            Head {
                root: Some(Piece {
                    offset: u32::MAX,
                    ..piece(1)
                }),
                ..head()
            },
            "page",
        ),
    ] {
        let error = Head::decode(&bad.encode()).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_page_has_its_slots_and_runs_of_empty_ones() {
    let mut slots = Slots::from([None; 256]);
    for index in [0usize, 1, 9, 63, 64, 255] {
        slots[index] = Some(piece(index as u64 / 10));
    }
    let bytes = encode_page(2, &slots).unwrap();
    assert_eq!(bytes.len(), 40 + 3 * 24 + 6 * 19);
    let page = Page::decode(bytes.clone(), 2).unwrap();
    assert_eq!(*page.slots(), *slots);
    for index in 0..=255u8 {
        assert_eq!(page.get(index), slots[usize::from(index)]);
    }
    assert_eq!(
        (page.empty_from(2), page.empty_from(9), page.empty_from(65)),
        (7, 0, 190)
    );
    assert!(Page::decode(bytes, 1).unwrap_err().contains("level"));
    assert!(encode_page(0, &[None; 256]).is_none());
    let full = Slots::from(std::array::from_fn(|index| Some(piece(index as u64))));
    assert_eq!(encode_page(0, &full).unwrap().len(), PAGE_LIMIT as usize);
}

#[test]
fn a_name_is_that_of_one_object_and_has_one_spelling() {
    let id = ObjectId {
        epoch: 1,
        nonce: 0xabc,
        number: 0x1_0000_0000,
    };
    let name = id.name(Kind::Segment);
    assert_eq!(name, "seg/0000000000000001-0000000000000abc/100000000");
    assert_eq!(ObjectId::parse(&name), Some((Kind::Segment, id)));
    for bad in [
        "seg/1-abc/1",
        "map/x",
        "head",
        "seg/0000000000000001-0000000000000ABC/100000000",
    ] {
        assert_eq!(ObjectId::parse(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>, level: u8) {
        let _ = Head::decode(&bytes);
        let _ = Page::decode(Bytes::from(bytes), level);
    }

    #[test]
    fn no_change_of_a_page_makes_a_slot_out_of_bounds(
        used in proptest::collection::vec(any::<u8>(), 1..40),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut slots = Slots::from([None; 256]);
        for index in used {
            slots[usize::from(index)] = Some(piece(u64::from(index) % 5));
        }
        let mut bytes = encode_page(0, &slots).unwrap().to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let cut = cut.index(4 * bytes.len());
        bytes.truncate(cut.max(1));
        if let Ok(page) = Page::decode(bytes.into(), 0) {
            for index in 0..=255 {
                let _ = page.get(index);
                prop_assert!(page.empty_from(index) <= 256 - u64::from(index));
            }
            for (_, piece) in page.iter() {
                prop_assert!(piece.offset.checked_add(piece.len).is_some());
            }
        }
    }

    #[test]
    fn a_head_with_a_right_checksum_and_any_fields_is_in_bounds_or_refused(
        fields in proptest::collection::vec(any::<u8>(), 80..120),
    ) {
        let mut bytes = b"NBDOHEAD\x01".to_vec();
        bytes.extend(fields);
        let sum = checksum(&bytes);
        bytes.extend(sum.to_le_bytes());
        if let Ok(head) = Head::decode(&bytes) {
            prop_assert!(head.blocks() <= 1 << 50 && head.levels <= 7);
        }
    }
}
