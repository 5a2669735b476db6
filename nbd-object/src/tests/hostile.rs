//! Objects that an attacker wrote, with right checksums.

use super::{place, read, sim::*};
use crate::{
    Error, Location, Options,
    format::{
        Codec, Head, Kind, ObjectId, Piece, Slots, checksum, encode_page, levels_for, segment,
    },
};
use object_store::{ObjectStoreExt, memory::InMemory, path::Path};
use std::{sync::Arc, time::Duration};

const ID: ObjectId = ObjectId {
    epoch: 0,
    nonce: 5,
    number: 0,
};

/// A disk of as many bytes as there can be, all of whose pages are one per level, and all of whose
/// blocks are one record.
async fn one_page_for_each_level(store: &InMemory, record: Piece) -> u8 {
    let blocks: u64 = 1 << 50;
    let levels = levels_for(blocks);
    let mut object = segment::header(ID).to_vec();
    let mut below = record;
    for level in 0..levels {
        let page = encode_page(level, &Slots::from([Some(below); 256])).unwrap();
        below = Piece {
            object: ID,
            offset: u32::try_from(object.len()).unwrap(),
            len: u32::try_from(page.len()).unwrap(),
            codec: Codec::Raw,
            checksum: checksum(&page),
        };
        object.extend_from_slice(&page);
    }
    let head = Head {
        disk: 1,
        size: 1 << 62,
        block_shift: 12,
        epoch: 1,
        nonce: 5,
        generation: 1,
        collections: 0,
        levels,
        root: Some(below),
    };
    let path = |name: &str| Path::from(format!("disk/{name}"));
    store
        .put(&path(&ID.name(Kind::Map)), object.into())
        .await
        .unwrap();
    store
        .put(&path("head"), head.encode().into())
        .await
        .unwrap();
    let mut segment = segment::header(ID).to_vec();
    segment.resize(32 + 4096, 7);
    store
        .put(&path(&ID.name(Kind::Segment)), segment.into())
        .await
        .unwrap();
    levels
}

fn record() -> Piece {
    let checksum = checksum(&[7; 4096]);
    Piece {
        object: ID,
        offset: 32,
        len: 4096,
        codec: Codec::Raw,
        checksum,
    }
}

fn hostile() -> (Sim, Arc<InMemory>, Location) {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let at = place(&sim, Faulty::new(store.clone(), &sim, 0, Faults::default()));
    (sim, store, at)
}

#[test]
fn pages_that_are_referred_to_without_end_take_bounded_work_in_every_call() {
    let (sim, store, at) = hostile();
    sim.run(async move {
        one_page_for_each_level(&store, record()).await;
        let disk = at
            .open(Options::new().horizon(Duration::ZERO))
            .await
            .unwrap();
        assert_eq!(
            read(&disk, (1 << 62) - 4096, 4096).await.unwrap(),
            [7; 4096]
        );
        let extents = disk.extents(0, 1 << 62, 4096).await.unwrap();
        assert!(!extents[0].hole);
        let report = at.check(None, &Options::new()).await.unwrap();
        assert!(report.damaged > 255, "{}", report.damaged);
        assert!(
            report.damages[0].detail.contains("two places"),
            "{}",
            report.damages[0]
        );
        disk.write(1 << 61, &[1; 512]).await.unwrap();
        disk.write_zeroes(4096 * 7, 1 << 60).await.unwrap();
        disk.flush().await.unwrap();
        disk.collect_garbage().await.unwrap();
        assert_eq!(read(&disk, 1 << 61, 512).await.unwrap(), [1; 512]);
        assert_eq!(read(&disk, (1 << 61) + 512, 512).await.unwrap(), [7; 512]);
        assert_eq!(read(&disk, 4096 * 7, 512).await.unwrap(), [0; 512]);
    });
}

#[test]
fn lengths_and_places_out_of_bounds_are_damages_before_memory_is_taken() {
    for bad in [
        Piece {
            len: 1 << 29,
            ..record()
        },
        Piece {
            offset: 1 << 29,
            ..record()
        },
        Piece {
            len: 100,
            checksum: checksum(&[7; 100]),
            ..record()
        },
        Piece {
            codec: Codec::Zstd,
            ..record()
        },
        Piece {
            object: ObjectId { number: 9, ..ID },
            ..record()
        },
    ] {
        let (sim, store, at) = hostile();
        sim.run(async move {
            one_page_for_each_level(&store, bad).await;
            let disk = at.open(Options::new()).await.unwrap();
            let error = read(&disk, 8192, 512).await.unwrap_err();
            let expected = matches!(error, Error::Damaged(_) | Error::Unsupported(_));
            assert!(expected || error.is_missing_object(), "{error}");
            let report = at.check(None, &Options::new()).await.unwrap();
            assert!(report.damaged > 0);
            disk.write_zeroes(0, 1 << 62).await.unwrap();
            disk.flush().await.unwrap();
            assert_eq!(read(&disk, 8192, 512).await.unwrap(), [0; 512]);
        });
    }
}
