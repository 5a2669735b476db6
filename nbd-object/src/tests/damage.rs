//! Bytes in the store that are not those that were written.

use super::{place, read, sim::*};
use crate::{Error, Layout, Options};
use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};
use std::sync::Arc;

const SIZE: u64 = 4 << 20;

#[test]
fn a_check_finds_every_flipped_byte_and_names_the_object_and_the_bytes_of_the_disk() {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let at = place(&sim, Faulty::new(store.clone(), &sim, 0, Faults::default()));
    sim.run(async move {
        at.create(SIZE, Layout::default().block_size(4096))
            .await
            .unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        for block in [0u64, 1, 7, 300, 301, 900] {
            disk.write(
                block * 4096,
                &[u8::try_from(block % 251).unwrap() + 1; 4096],
            )
            .await
            .unwrap();
        }
        disk.flush().await.unwrap();
        assert_eq!(at.check(None, &Options::new()).await.unwrap().damages, []);
        let list: Vec<_> = store.list(None).try_collect().await.unwrap();
        assert_eq!(list.len(), 3);
        for meta in list {
            let path = &meta.location;
            let good = store.get(path).await.unwrap().bytes().await.unwrap();
            // All bytes of the head and the pages, and some of the records.
            let step = if path.as_ref().contains("/seg/") {
                97
            } else {
                1
            };
            for at_byte in (0..good.len()).step_by(step) {
                let mut bad = good.to_vec();
                bad[at_byte] ^= 0x10;
                store.put(path, bad.into()).await.unwrap();
                let report = at.check(None, &Options::new()).await.unwrap();
                assert!(report.damaged > 0, "{path}, byte {at_byte}");
                let damage = &report.damages[0];
                assert_eq!(damage.object, path.as_ref());
                assert!(
                    damage.range.contains(&(at_byte as u64)),
                    "{damage} for {at_byte}"
                );
                if path.as_ref().contains("/seg/") && at_byte >= 32 {
                    let block = [0, 1, 7, 300, 301, 900][(at_byte - 32) / 4096] * 4096;
                    assert_eq!(damage.disk, Some(block..block + 4096));
                }
            }
            // An object that is cut off, and one that is gone.
            store
                .put(path, good.slice(..good.len() - 1).into())
                .await
                .unwrap();
            assert!(
                at.check(None, &Options::new()).await.unwrap().damaged > 0,
                "{path}"
            );
            if !path.as_ref().ends_with("head") {
                store.delete(path).await.unwrap();
                assert!(
                    at.check(None, &Options::new()).await.unwrap().damaged > 0,
                    "{path}"
                );
            }
            store.put(path, good.into()).await.unwrap();
        }
        assert_eq!(at.check(None, &Options::new()).await.unwrap().damages, []);
    });
}

#[test]
fn a_damaged_record_is_an_error_of_its_block_alone_and_is_repaired_by_a_write() {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let at = place(&sim, Faulty::new(store.clone(), &sim, 0, Faults::default()));
    sim.run(async move {
        at.create(SIZE, Layout::default().block_size(4096))
            .await
            .unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        disk.write(0, &[1; 3 * 4096]).await.unwrap();
        disk.flush().await.unwrap();
        let list: Vec<_> = store.list(None).try_collect().await.unwrap();
        let segment = list
            .iter()
            .find(|meta| meta.location.as_ref().contains("/seg/"))
            .unwrap();
        let mut bytes = store
            .get(&segment.location)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
            .to_vec();
        bytes[32 + 4096 + 5] = 0;
        store.put(&segment.location, bytes.into()).await.unwrap();
        let disk = at.open(Options::new().read_ahead(0)).await.unwrap();
        assert_eq!(read(&disk, 0, 4096).await.unwrap(), [1; 4096]);
        assert_eq!(read(&disk, 8192, 4096).await.unwrap(), [1; 4096]);
        let Err(Error::Damaged(damage)) = read(&disk, 4096, 512).await else {
            panic!()
        };
        assert_eq!(damage.disk, Some(4096..8192));
        // A part of the block cannot be committed, and the whole of it can.
        disk.write(4096, &[2; 512]).await.unwrap();
        assert!(matches!(disk.flush().await, Err(Error::Damaged(_))));
        disk.write(4096, &[2; 4096]).await.unwrap();
        disk.flush().await.unwrap();
        assert_eq!(at.check(None, &Options::new()).await.unwrap().damages, []);
    });
}
