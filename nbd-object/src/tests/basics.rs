//! Every call, on stores without faults.

use super::{memory, place, read, sim::*};
use crate::{Directory, Error, Extent, Layout, Options};
use nbd_io::runtime::Runtime;

const MIB: u64 = 1 << 20;

#[test]
fn written_bytes_are_read_before_and_after_a_flush_and_when_the_disk_is_opened_again() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(16 * MIB, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        let data: Vec<u8> = (0..200_704u32)
            .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
            .collect();
        disk.write(3 * MIB + 512, &data).await.unwrap();
        let expected = |bytes: Vec<u8>| {
            assert!(bytes[..512].iter().all(|byte| *byte == 0));
            assert!(bytes[512..512 + data.len()] == data);
            assert!(bytes[512 + data.len()..].iter().all(|byte| *byte == 0));
        };
        expected(read(&disk, 3 * MIB, MIB).await.unwrap());
        disk.flush().await.unwrap();
        expected(read(&disk, 3 * MIB, MIB).await.unwrap());
        let again = at.open(Options::new()).await.unwrap();
        expected(read(&again, 3 * MIB, MIB).await.unwrap());
        let viewer = at.open_read_only(None, Options::new()).await.unwrap();
        expected(read(&viewer, 3 * MIB, MIB).await.unwrap());
        assert!(matches!(
            viewer.write(0, &[0; 512]).await,
            Err(Error::ReadOnly)
        ));
    });
}

#[test]
fn a_part_of_a_block_keeps_the_stored_rest() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        disk.write(0, &[1; 65536]).await.unwrap();
        disk.flush().await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        disk.write(4096, &[2; 512]).await.unwrap();
        disk.write_zeroes(8192, 1024).await.unwrap();
        for _ in 0..2 {
            let bytes = read(&disk, 0, 65536).await.unwrap();
            assert!(bytes[..4096].iter().all(|byte| *byte == 1));
            assert!(bytes[4096..4608].iter().all(|byte| *byte == 2));
            assert!(bytes[4608..8192].iter().all(|byte| *byte == 1));
            assert!(bytes[8192..9216].iter().all(|byte| *byte == 0));
            assert!(bytes[9216..].iter().all(|byte| *byte == 1));
            disk.flush().await.unwrap();
        }
    });
}

#[test]
fn the_newest_opener_has_the_disk_and_the_others_fail_for_good() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let old = at.open(Options::new()).await.unwrap();
        old.write(0, &[1; 4096]).await.unwrap();
        old.flush().await.unwrap();
        let new = at.open(Options::new()).await.unwrap();
        old.write(0, &[2; 4096]).await.unwrap();
        let error = old.flush().await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Fenced {
                    expected: 1,
                    found: 2
                }
            ),
            "{error}"
        );
        assert!(matches!(old.flush().await, Err(Error::Fenced { .. })));
        assert!(matches!(
            old.write(0, &[2; 512]).await,
            Err(Error::Fenced { .. })
        ));
        assert!(matches!(old.read(0, 512).await, Err(Error::Fenced { .. })));
        assert_eq!(read(&new, 0, 512).await.unwrap(), [1; 512]);
        new.write(0, &[3; 512]).await.unwrap();
        new.flush().await.unwrap();
    });
}

#[test]
fn a_store_that_ignores_conditions_is_refused() {
    let sim = Sim::default();
    let (store, at) = memory(&sim);
    store.set(Faults {
        unconditional: true,
        ..Faults::default()
    });
    sim.run(async move {
        let error = at.create(MIB, Layout::default()).await.unwrap_err();
        assert!(error.to_string().contains("ignores conditions"), "{error}");
        store.set(Faults::default());
        at.create(MIB, Layout::default()).await.unwrap();
        store.set(Faults {
            unconditional: true,
            ..Faults::default()
        });
        assert!(matches!(
            at.open(Options::new()).await,
            Err(Error::IgnoresConditions(_))
        ));
    });
}

#[test]
fn a_store_that_compares_tags_without_their_quotes_keeps_disks() {
    let sim = Sim::default();
    let (store, at) = memory(&sim);
    store.set(Faults {
        bare_tags: true,
        ..Faults::default()
    });
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let old = at.open(Options::new()).await.unwrap();
        for value in 1..4 {
            old.write(0, &[value; 512]).await.unwrap();
            old.flush().await.unwrap();
        }
        let new = at.open(Options::new()).await.unwrap();
        assert_eq!(read(&new, 0, 512).await.unwrap(), [3; 512]);
        old.write(0, &[4; 512]).await.unwrap();
        assert!(matches!(old.flush().await, Err(Error::Fenced { .. })));
        new.write(0, &[5; 512]).await.unwrap();
        new.flush().await.unwrap();
    });
}

#[test]
fn a_directory_without_swaps_is_refused_and_one_of_ours_is_a_disk() {
    let sim = Sim::default();
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("new");
    let directory = Directory::open(&path).unwrap();
    let plain = object_store::local::LocalFileSystem::new_with_prefix(&path).unwrap();
    let (at, plain) = (place(&sim, directory), place(&sim, plain));
    sim.run(async move {
        let error = plain.create(MIB, Layout::default()).await.unwrap_err();
        assert!(matches!(error, Error::IgnoresConditions(_)), "{error}");
        at.create(MIB, Layout::default()).await.unwrap();
        assert!(matches!(
            at.create(MIB, Layout::default()).await,
            Err(Error::AlreadyExists(_))
        ));
        let old = at.open(Options::new()).await.unwrap();
        old.write(0, &[7; 1024]).await.unwrap();
        old.flush().await.unwrap();
        let new = at.open(Options::new()).await.unwrap();
        assert_eq!(read(&new, 0, 1024).await.unwrap(), [7; 1024]);
        old.write(0, &[8; 1024]).await.unwrap();
        assert!(matches!(old.flush().await, Err(Error::Fenced { .. })));
        at.delete().await.unwrap();
        assert!(matches!(
            at.open(Options::new()).await,
            Err(Error::NotFound(_))
        ));
    });
}

#[test]
fn extents_are_data_and_holes_without_reading_data() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(1 << 40, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        disk.write(1 << 30, &[1; 131_072]).await.unwrap();
        let end = (1 << 40) - (1 << 30) - 131_072;
        let expected = [
            Extent {
                len: 1 << 30,
                hole: true,
            },
            Extent {
                len: 131_072,
                hole: false,
            },
            Extent {
                len: end,
                hole: true,
            },
        ];
        assert_eq!(disk.extents(0, 1 << 40, 100).await.unwrap(), expected);
        disk.flush().await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        let before = disk.statistics();
        assert_eq!(disk.extents(0, 1 << 40, 100).await.unwrap(), expected);
        assert_eq!(disk.extents(0, 1 << 40, 1).await.unwrap(), expected[..1]);
        assert_eq!(disk.statistics().gets - before.gets, 3);
        disk.trim(0, 1 << 40).await.unwrap();
        let all = [Extent {
            len: 1 << 40,
            hole: true,
        }];
        assert_eq!(disk.extents(0, 1 << 40, 100).await.unwrap(), all);
        disk.flush().await.unwrap();
        assert!(at.info(None).await.unwrap().is_empty);
    });
}

#[test]
fn a_snapshot_keeps_its_bytes_and_is_listed_until_it_is_deleted() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        disk.write(0, &[1; 512]).await.unwrap();
        disk.snapshot("one").await.unwrap();
        disk.write(0, &[2; 512]).await.unwrap();
        disk.flush().await.unwrap();
        at.snapshot("two").await.unwrap();
        assert!(matches!(
            at.snapshot("two").await,
            Err(Error::AlreadyExists(_))
        ));
        assert!(matches!(
            at.snapshot("../head").await,
            Err(Error::Invalid(_))
        ));
        let names: Vec<_> = at
            .snapshots()
            .await
            .unwrap()
            .into_iter()
            .map(|one| one.name)
            .collect();
        assert_eq!(names, ["one", "two"]);
        for (name, byte) in [("one", 1), ("two", 2)] {
            let view = at.open_read_only(Some(name), Options::new()).await.unwrap();
            assert_eq!(read(&view, 0, 512).await.unwrap(), [byte; 512]);
        }
        at.delete_snapshot("one").await.unwrap();
        assert!(matches!(
            at.delete_snapshot("one").await,
            Err(Error::NotFound(_))
        ));
        assert!(matches!(
            at.open_read_only(Some("one"), Options::new()).await,
            Err(Error::NotFound(_))
        ));
    });
}

#[test]
fn a_disk_grows_and_keeps_its_bytes() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        // No page that was made is in the cache.
        let disk = at.open(Options::new().map_cache_size(0)).await.unwrap();
        disk.write(MIB - 512, &[1; 512]).await.unwrap();
        disk.flush().await.unwrap();
        disk.write_zeroes(0, 4096).await.unwrap();
        disk.grow(1 << 45).await.unwrap();
        assert!(matches!(disk.grow(MIB).await, Err(Error::Invalid(_))));
        disk.write((1 << 45) - 512, &[2; 512]).await.unwrap();
        disk.flush().await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        assert_eq!(disk.size(), 1 << 45);
        assert_eq!(read(&disk, MIB - 512, 512).await.unwrap(), [1; 512]);
        assert_eq!(read(&disk, (1 << 45) - 512, 512).await.unwrap(), [2; 512]);
    });
}

#[test]
fn one_put_of_data_one_of_pages_and_one_of_the_head_make_a_small_flush() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(1 << 40, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        let before = disk.statistics();
        disk.write(5 << 30, &[1; 4096]).await.unwrap();
        disk.flush().await.unwrap();
        disk.flush().await.unwrap();
        let after = disk.statistics();
        assert_eq!(after.puts - before.puts, 3);
        assert_eq!(after.gets - before.gets, 0);
        assert_eq!(after.commits, 1);
    });
}

#[test]
fn a_flush_waits_for_the_commit_under_way_and_flushes_that_wait_share_the_next_one() {
    let sim = Sim::default();
    let (store, at) = memory(&sim);
    let clock = sim.clone();
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        store.set(Faults {
            exact_latency: 20,
            ..Faults::default()
        });
        let pause = |millis| clock.sleep(std::time::Duration::from_millis(millis));
        let begin = clock.now();
        disk.write(0, &[1; 512]).await.unwrap();
        let first = disk.flush();
        let second = async {
            // Nothing is new, but the data of the first one is not in the store.
            pause(5).await;
            disk.flush().await.unwrap();
            let view = at.open_read_only(None, Options::new()).await.unwrap();
            assert_eq!(read(&view, 0, 512).await.unwrap(), [1; 512]);
        };
        let others = async {
            pause(6).await;
            let flushes: Vec<_> = (1..10u64)
                .map(|sector| {
                    let disk = &disk;
                    async move {
                        disk.write(sector * 512, &[2; 512]).await.unwrap();
                        disk.flush().await.unwrap();
                    }
                })
                .collect();
            futures_util::future::join_all(flushes).await;
            assert_eq!((clock.now() - begin).as_millis(), 2 * 40);
        };
        let (first, (), ()) = futures_util::join!(first, second, others);
        first.unwrap();
        assert_eq!(disk.statistics().commits, 2);
    });
}

#[cfg(not(feature = "zstd"))]
#[test]
fn compression_without_its_feature_is_refused_by_name() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let options = Options::new().compression(crate::Compression::Zstd(3));
        let error = at.open(options).await.unwrap_err();
        assert!(error.to_string().contains("feature `zstd`"), "{error}");
    });
}

#[test]
fn a_disk_can_be_at_the_top_of_its_store() {
    let sim = Sim::default();
    let temporary = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(Directory::open(temporary.path()).unwrap());
    let at = crate::Location::new(store, "", sim.clone());
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let disk = at
            .open(Options::new().horizon(std::time::Duration::ZERO))
            .await
            .unwrap();
        for value in 1..4 {
            disk.write(0, &[value; 512]).await.unwrap();
            disk.flush().await.unwrap();
        }
        disk.snapshot("one").await.unwrap();
        assert_eq!(at.snapshots().await.unwrap()[0].name, "one");
        let collected = disk.collect_garbage().await.unwrap();
        assert_eq!((collected.live_objects, collected.deleted_objects), (2, 4));
        assert_eq!(read(&disk, 0, 512).await.unwrap(), [3; 512]);
        assert_eq!(
            at.check(Some("one"), &Options::new())
                .await
                .unwrap()
                .damaged,
            0
        );
        at.delete().await.unwrap();
        assert!(matches!(at.info(None).await, Err(Error::NotFound(_))));
    });
}

#[test]
fn changes_are_seen_while_they_are_being_committed() {
    let sim = Sim::default();
    let (store, at) = memory(&sim);
    let clock = sim.clone();
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        disk.write(65_536, &[1; 65_536]).await.unwrap();
        disk.flush().await.unwrap();
        store.set(Faults {
            exact_latency: 20,
            ..Faults::default()
        });
        disk.write(0, &[2; 512]).await.unwrap();
        disk.trim(65_536, 65_536).await.unwrap();
        let look = async {
            clock.sleep(std::time::Duration::from_millis(10)).await;
            assert_eq!(disk.statistics().commits, 1);
            assert_eq!(read(&disk, 0, 512).await.unwrap(), [2; 512]);
            assert_eq!(read(&disk, 65_536, 512).await.unwrap(), [0; 512]);
            let extents = disk.extents(0, MIB, 10).await.unwrap();
            let hole = Extent {
                len: MIB - 65_536,
                hole: true,
            };
            assert_eq!(
                extents,
                [
                    Extent {
                        len: 65_536,
                        hole: false
                    },
                    hole
                ]
            );
            // A newer change is above the one under way.
            disk.write(0, &[3; 512]).await.unwrap();
            assert_eq!(read(&disk, 0, 1024).await.unwrap()[..512], [3; 512]);
        };
        let (flushed, ()) = futures_util::join!(disk.flush(), look);
        flushed.unwrap();
        assert_eq!(read(&disk, 0, 512).await.unwrap(), [3; 512]);
    });
}
