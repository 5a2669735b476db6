//! Collections of garbage.

use super::{place, read, sim::*};
use crate::{Disk, Error, Layout, Location, Options};
use futures_util::TryStreamExt;
use nbd_io::runtime::Runtime;
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};
use std::{sync::Arc, time::Duration};

const SIZE: u64 = 8 << 20;

fn options() -> Options {
    Options::new().horizon(Duration::ZERO)
}

async fn objects(store: &InMemory) -> u64 {
    let list: Vec<_> = store.list(None).try_collect().await.unwrap();
    list.len() as u64
}

/// A disk whose blocks have the values of their last writes, and snapshots of it between them.
async fn fill(at: &Location) -> Disk {
    at.create(SIZE, Layout::default().block_size(4096))
        .await
        .unwrap();
    let disk = at.open(options()).await.unwrap();
    for value in 1..=12u8 {
        for block in 0..10 {
            disk.write(
                u64::from(value % 4) * 500 * 4096 + block * 4096,
                &[value; 4096],
            )
            .await
            .unwrap();
        }
        disk.flush().await.unwrap();
        if value % 4 == 0 {
            disk.snapshot(&format!("at-{value}")).await.unwrap();
        }
    }
    disk
}

async fn assert_filled(disk: &Disk, last: u8) {
    for value in last - 3..=last {
        let found = read(disk, u64::from(value % 4) * 500 * 4096, 40_960)
            .await
            .unwrap();
        assert!(found.iter().all(|byte| *byte == value), "{value} in {last}");
    }
}

async fn assert_whole(at: &Location, snapshots: &[u8]) {
    assert_filled(&at.open_read_only(None, options()).await.unwrap(), 12).await;
    assert_eq!(at.check(None, &options()).await.unwrap().damages, []);
    for last in snapshots {
        let name = format!("at-{last}");
        assert_filled(
            &at.open_read_only(Some(&name), options()).await.unwrap(),
            *last,
        )
        .await;
        assert_eq!(at.check(Some(&name), &options()).await.unwrap().damages, []);
    }
}

#[test]
fn no_object_of_the_head_or_a_snapshot_is_deleted_wherever_a_collection_ends() {
    let mut end = false;
    for cut in 0.. {
        let sim = Sim::default();
        let store = Arc::new(InMemory::new());
        let faulty = Faulty::new(store.clone(), &sim, cut, Faults::default());
        let at = place(&sim, faulty.clone());
        end = sim.run(async move {
            let disk = fill(&at).await;
            at.delete_snapshot("at-4").await.unwrap();
            let power = Some(faulty.changes() + cut);
            faulty.set(Faults {
                power,
                ..Faults::default()
            });
            let collection = std::pin::pin!(disk.collect_garbage());
            let dead = std::pin::pin!(faulty.cut());
            let ended = futures_util::future::select(collection, dead).await;
            let whole = matches!(ended, futures_util::future::Either::Left(_));
            faulty.set(Faults::default());
            assert_whole(&at, &[8, 12]).await;
            // The next one finishes the work.
            let disk = at.open(options()).await.unwrap();
            disk.collect_garbage().await.unwrap();
            assert_whole(&at, &[8, 12]).await;
            let before = objects(&store).await;
            let nothing = disk.collect_garbage().await.unwrap();
            assert_eq!(
                (nothing.deleted_objects, objects(&store).await),
                (0, before)
            );
            whole
        });
        if end {
            break;
        }
    }
    assert!(end);
}

#[test]
fn overwritten_data_that_is_in_no_snapshot_is_deleted() {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let at = place(&sim, Faulty::new(store.clone(), &sim, 0, Faults::default()));
    sim.run(async move {
        let disk = fill(&at).await;
        drop(disk);
        for name in ["at-4", "at-8", "at-12"] {
            at.delete_snapshot(name).await.unwrap();
        }
        let before = objects(&store).await;
        // Young garbage stays.
        let patient = at.open(Options::new()).await.unwrap();
        let kept = patient.collect_garbage().await.unwrap();
        assert_eq!((kept.deleted_objects, objects(&store).await), (0, before));
        assert!(kept.young_objects > 0);
        let disk = at.open(options()).await.unwrap();
        let collected = disk.collect_garbage().await.unwrap();
        // Four segments and the pages of the last commits are left, and the head.
        assert_eq!(collected.live_objects, objects(&store).await - 1);
        assert!(collected.live_bytes < 300_000, "{collected:?}");
        assert_whole(&at, &[]).await;
        disk.trim(0, SIZE).await.unwrap();
        disk.collect_garbage().await.unwrap();
        assert_eq!(objects(&store).await, 1);
    });
}

#[test]
fn a_collection_writes_nothing_if_nothing_has_changed_since_the_last_one() {
    let sim = Sim::default();
    let (store, at) = super::memory(&sim);
    sim.run(async move {
        let disk = fill(&at).await;
        disk.compact(50).await.unwrap();
        let first = disk.collect_garbage().await.unwrap();
        let (changes, head) = (store.changes(), at.info(None).await.unwrap());
        disk.compact(50).await.unwrap();
        let second = disk.collect_garbage().await.unwrap();
        assert_eq!(store.changes(), changes);
        assert_eq!(at.info(None).await.unwrap(), head);
        assert_eq!(second.live_objects, first.live_objects);
        // Objects of a snapshot that was deleted are garbage without a change of the head.
        at.delete_snapshot("at-4").await.unwrap();
        assert!(disk.collect_garbage().await.unwrap().deleted_objects > 0);
        assert_eq!(at.info(None).await.unwrap(), head);
        assert_whole(&at, &[8, 12]).await;
        disk.write(0, &[1; 4096]).await.unwrap();
        disk.collect_garbage().await.unwrap();
        assert!(at.info(None).await.unwrap().collections > head.collections);
    });
}

#[test]
fn garbage_of_an_unchanged_disk_is_deleted_when_it_is_old_enough() {
    let sim = Sim::default();
    let (_, at) = super::memory(&sim);
    sim.run(async move {
        drop(fill(&at).await);
        at.delete_snapshot("at-8").await.unwrap();
        let horizon = Duration::from_millis(200);
        let disk = at.open(options().horizon(horizon)).await.unwrap();
        let first = disk.collect_garbage().await.unwrap();
        // The store's clock is the system's, and not the simulation's.
        std::thread::sleep(horizon);
        let second = disk.collect_garbage().await.unwrap();
        let deleted = first.deleted_objects + second.deleted_objects;
        assert!(deleted > 0, "{first:?} {second:?}");
        assert_whole(&at, &[4, 12]).await;
    });
}

#[test]
fn a_collection_of_an_unchanged_disk_that_another_writer_has_opened_is_fenced() {
    let sim = Sim::default();
    let (store, at) = super::memory(&sim);
    sim.run(async move {
        let old = fill(&at).await;
        old.collect_garbage().await.unwrap();
        let new = at.open(options()).await.unwrap();
        new.write(0, &[7; 4096]).await.unwrap();
        new.flush().await.unwrap();
        let changes = store.changes();
        let refused = old.collect_garbage().await;
        assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
        // The refused swap.
        assert!(store.changes() <= changes + 1);
        assert_eq!(at.check(None, &options()).await.unwrap().damages, []);
    });
}

#[test]
fn snapshots_that_another_program_takes_during_collections_are_whole() {
    for seed in 0..8 {
        let sim = Sim::default();
        let store = Arc::new(InMemory::new());
        let faults = Faults {
            latency: 40,
            ..Faults::default()
        };
        let at = place(&sim, Faulty::new(store.clone(), &sim, seed, faults));
        let other = place(&sim, Faulty::new(store, &sim, seed + 100, faults));
        let runtime = sim.clone();
        sim.run(async move {
            at.create(SIZE, Layout::default().block_size(4096))
                .await
                .unwrap();
            let disk = at.open(options()).await.unwrap();
            let writer = disk.clone();
            let writes = async move {
                for round in 0..40u64 {
                    writer
                        .write(
                            round % 5 * 4096 * 300,
                            &[u8::try_from(round).unwrap() + 1; 4096],
                        )
                        .await
                        .unwrap();
                    writer.flush().await.unwrap();
                }
            };
            let collections = async move {
                for _ in 0..15 {
                    disk.collect_garbage().await.unwrap();
                }
            };
            let snapshots = async {
                for name in 0..8 {
                    Runtime::sleep(&runtime, Duration::from_millis(50)).await;
                    // With collections all the time, one may never come through.
                    let _ = other.snapshot(&format!("s{name}")).await;
                }
            };
            futures_util::join!(writes, collections, snapshots);
            for snapshot in at.snapshots().await.unwrap() {
                let report = at.check(Some(&snapshot.name), &options()).await.unwrap();
                assert_eq!(report.damages, [], "seed {seed}, {}", snapshot.name);
            }
        });
    }
}

#[test]
fn a_snapshot_that_was_held_up_during_a_collection_is_taken_anew() {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let at = place(&sim, Faulty::new(store.clone(), &sim, 0, Faults::default()));
    let slow = Faulty::new(store, &sim, 0, Faults::default());
    let other = place(&sim, slow.clone());
    sim.run(async move {
        at.create(SIZE, Layout::default()).await.unwrap();
        let disk = at.open(options()).await.unwrap();
        disk.write(0, &[1; 65_536]).await.unwrap();
        disk.flush().await.unwrap();
        // It has read the head, and its put is on the way.
        let snapshot = other.snapshot("late");
        let collection = async {
            slow.hold(1).await;
            disk.write(0, &[2; 65_536]).await.unwrap();
            assert!(disk.collect_garbage().await.unwrap().deleted_objects > 0);
            slow.release();
        };
        let ((), snapshot) = futures_util::join!(collection, snapshot);
        snapshot.unwrap();
        let view = at.open_read_only(Some("late"), options()).await.unwrap();
        assert_eq!(read(&view, 0, 65_536).await.unwrap(), [2; 65_536]);
    });
}

#[test]
fn a_disk_or_a_snapshot_that_is_deleted_while_it_is_made_is_made_anew() {
    let sim = Sim::default();
    let inner = Arc::new(InMemory::new());
    let store = Faulty::new(inner.clone(), &sim, 0, Faults::default());
    let at = place(&sim, store.clone());
    let timer = sim.clone();
    sim.run(async move {
        let slow = Faults {
            exact_latency: 10,
            ..Faults::default()
        };
        // The answer to the first put is lost, and the second one is refused. Before the taker looks, the
        // object is deleted.
        let delete = async |put: u64, path: &str| {
            store.hold(put).await;
            store.set(Faults {
                forgetful: true,
                ..slow
            });
            store.release();
            store.hold(put + 1).await;
            store.set(slow);
            store.release();
            timer.sleep(Duration::from_millis(15)).await;
            inner.delete(&path.into()).await.unwrap();
        };
        store.set(slow);
        // Before that are the probe's puts, and its deletion.
        let (created, ()) =
            futures_util::join!(at.create(SIZE, Layout::default()), delete(6, "disk/head"));
        created.unwrap();
        assert_eq!(at.info(None).await.unwrap().size, SIZE);
        let next = store.changes() + 1;
        let (taken, ()) = futures_util::join!(at.snapshot("some"), delete(next, "disk/snap/some"));
        taken.unwrap();
        assert_eq!(at.snapshots().await.unwrap()[0].name, "some");
    });
}

#[test]
fn a_compaction_leaves_no_object_of_which_less_than_the_wanted_part_is_in_use() {
    let sim = Sim::default();
    let (_, at) = super::memory(&sim);
    sim.run(async move {
        at.create(SIZE, Layout::default().block_size(4096))
            .await
            .unwrap();
        let disk = at.open(options()).await.unwrap();
        let mut random = fastrand::Rng::with_seed(3);
        let mut model = vec![0; usize::try_from(SIZE).unwrap()];
        for _ in 0..60 {
            for _ in 0..40 {
                let (block, value) = (random.u64(0..SIZE / 4096), random.u8(1..));
                let offset = block * 4096;
                model[usize::try_from(offset).unwrap()..][..4096].fill(value);
                disk.write(offset, &[value; 4096]).await.unwrap();
            }
            disk.flush().await.unwrap();
        }
        let before = disk.collect_garbage().await.unwrap();
        assert!(
            before.live_bytes * 85 > before.used_bytes * 100,
            "{before:?}"
        );
        let mut rounds = 0;
        while disk.compact(85).await.unwrap().objects > 0 {
            rounds += 1;
            assert!(rounds < 5);
        }
        let after = disk.collect_garbage().await.unwrap();
        assert!(after.live_bytes * 85 <= after.used_bytes * 100, "{after:?}");
        assert!(after.live_objects < before.live_objects / 2, "{after:?}");
        let disk = at.open(options()).await.unwrap();
        assert!(read(&disk, 0, SIZE).await.unwrap() == model);
        // Objects of a snapshot are left where they are.
        disk.snapshot("one").await.unwrap();
        disk.trim(4096, SIZE - 4096).await.unwrap();
        assert_eq!(disk.compact(99).await.unwrap().blocks, 0);
    });
}
