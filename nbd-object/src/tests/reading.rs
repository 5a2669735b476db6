//! Requests of reads, and caches.

use super::{memory, place, read, sim::*};
use crate::{Layout, LocalCache, Options};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use nbd_io::{Piece, runtime::Runtime};
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};
use std::{sync::Arc, time::Duration};

const MIB: u64 = 1 << 20;

/// A disk of 16 MiB with data everywhere, each block with its number.
async fn full(at: &crate::Location) {
    at.create(16 * MIB, Layout::default()).await.unwrap();
    let disk = at.open(Options::new()).await.unwrap();
    for block in 0..256u64 {
        disk.write(block * 65_536, &[u8::try_from(block).unwrap(); 65_536])
            .await
            .unwrap();
    }
    disk.flush().await.unwrap();
}

#[test]
fn a_long_read_takes_a_get_for_each_mebibyte_and_all_of_them_at_once() {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let faulty = Faulty::new(store, &sim, 0, Faults::default());
    let at = place(&sim, faulty.clone());
    let clock = sim.clone();
    sim.run(async move {
        full(&at).await;
        let disk = at.open(Options::new().read_ahead(0)).await.unwrap();
        read(&disk, 0, 512).await.unwrap();
        let before = disk.statistics();
        faulty.set(Faults {
            exact_latency: 20,
            ..Faults::default()
        });
        let begin = clock.now();
        let bytes = disk.read(MIB, 8 << 20).await.unwrap();
        assert_eq!(bytes.len(), 8 << 20);
        // One more at each border of segments, which have 4 MiB less a header.
        let gets = disk.statistics().gets - before.gets;
        assert!((8..=11).contains(&gets), "{gets}");
        assert_eq!(clock.now() - begin, Duration::from_millis(20));
        let before = disk.statistics();
        let begin = clock.now();
        disk.read(MIB, 8 << 20).await.unwrap();
        assert_eq!(disk.statistics().gets, before.gets);
        assert_eq!(clock.now(), begin);
    });
}

#[test]
fn sixty_four_reads_take_the_time_of_one_and_get_no_block_twice() {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let faulty = Faulty::new(store, &sim, 0, Faults::default());
    let at = place(&sim, faulty.clone());
    let clock = sim.clone();
    sim.run(async move {
        full(&at).await;
        let disk = at.open(Options::new().read_ahead(0)).await.unwrap();
        read(&disk, 0, 512).await.unwrap();
        faulty.set(Faults {
            exact_latency: 20,
            ..Faults::default()
        });
        let (begin, before) = (clock.now(), disk.statistics());
        // Two of each in 32 blocks.
        let reads = (0..64u64).map(|at| disk.read((at / 2 * 3 + 1) * 65_536 + at * 512, 4096));
        let reads: Vec<_> = futures_util::future::join_all(reads).await;
        assert!(reads.iter().all(Result::is_ok));
        assert_eq!(clock.now() - begin, Duration::from_millis(20));
        assert_eq!(disk.statistics().gets - before.gets, 32);
    });
}

#[test]
fn a_reader_that_is_not_polled_holds_up_no_other_reader_of_its_block() {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let faulty = Faulty::new(store, &sim, 0, Faults::default());
    let at = place(&sim, faulty.clone());
    sim.run(async move {
        full(&at).await;
        let disk = at.open(Options::new().read_ahead(0)).await.unwrap();
        faulty.set(Faults {
            exact_latency: 20,
            ..Faults::default()
        });
        let mut stuck = Box::pin(disk.read(65_536, 4096));
        assert!(futures_util::poll!(&mut stuck).is_pending());
        assert_eq!(read(&disk, 65_536, 4096).await.unwrap(), [1; 4096]);
        drop(stuck);
    });
}

#[test]
fn a_sequential_reader_of_more_than_the_cache_gets_each_block_once() {
    let sim = Sim::default();
    let (store, at) = memory(&sim);
    sim.run(async move {
        full(&at).await;
        store.set(Faults {
            exact_latency: 20,
            ..Faults::default()
        });
        for cache in [2, 4, 8] {
            let options = Options::new().cache_size(cache * MIB);
            let disk = at.open(options).await.unwrap();
            let reads = (0..64).map(|piece| disk.read(piece * 262_144, 262_144));
            let reads = stream::iter(reads).buffered(4);
            reads.try_for_each(async |_| Ok(())).await.unwrap();
            let got = disk.statistics().bytes_got;
            assert!(got < 17 * MIB, "{got} bytes with {cache} MiB");
        }
    });
}

#[test]
fn a_sequential_reader_finds_its_blocks_in_the_cache_and_a_random_one_gets_nothing_more() {
    let sim = Sim::default();
    let (store, at) = memory(&sim);
    let clock = sim.clone();
    sim.run(async move {
        full(&at).await;
        let disk = at.open(Options::new()).await.unwrap();
        read(&disk, 15 * MIB, 512).await.unwrap();
        store.set(Faults {
            exact_latency: 20,
            ..Faults::default()
        });
        let (begin, before) = (clock.now(), disk.statistics());
        for at in 0..(8 * MIB / 131_072) {
            let bytes = read(&disk, at * 131_072, 131_072).await.unwrap();
            assert_eq!(bytes[0], u8::try_from(at * 2).unwrap());
            clock.sleep(Duration::from_millis(5)).await;
        }
        let after = disk.statistics();
        assert!(after.read_ahead_blocks > 100, "{after:?}");
        // The reader alone takes 320 ms, and 64 gets one after the other would take 1,280 more.
        assert!(
            clock.now() - begin < Duration::from_millis(450),
            "{:?}",
            clock.now() - begin
        );
        assert!(after.gets - before.gets < 30, "{after:?}");
        let disk = at.open(Options::new()).await.unwrap();
        let before = disk.statistics();
        for at in [3u64, 100, 17, 220, 60, 180, 90, 140] {
            read(&disk, at * 65_536, 4096).await.unwrap();
        }
        let after = disk.statistics();
        assert_eq!((after.read_ahead_blocks, after.gets - before.gets), (0, 9));
    });
}

#[test]
fn a_block_in_the_cache_keeps_no_larger_buffer_of_the_store() {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let at = place(&sim, store.clone());
    sim.run(async move {
        full(&at).await;
        let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
        let mut buffers = Vec::new();
        for object in objects {
            let got = store.get(&object.location).await.unwrap();
            let bytes = got.bytes().await.unwrap();
            buffers.push(bytes.as_ptr().addr()..bytes.as_ptr().addr() + bytes.len());
        }
        let disk = at.open(Options::new()).await.unwrap();
        // Alone, and as a part of a get.
        for (offset, len) in [(65_536, 4096), (MIB, 4 * 65_536)] {
            let read = disk.read(offset, len).await.unwrap();
            for piece in read.pieces() {
                let Piece::Data(data) = piece else {
                    panic!("{piece:?}");
                };
                assert!(
                    !buffers
                        .iter()
                        .any(|buffer| buffer.contains(&data.as_ptr().addr()))
                );
            }
        }
    });
}

#[test]
fn the_cache_in_memory_stays_within_its_limit() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        full(&at).await;
        let disk = at.open(Options::new().cache_size(2 * MIB)).await.unwrap();
        for at in 0..16 {
            read(&disk, at * MIB, MIB).await.unwrap();
            assert!(disk.statistics().cached_bytes <= 2 * MIB);
        }
        assert!(disk.statistics().cached_bytes > MIB);
    });
}

#[test]
fn records_on_a_local_disk_save_gets_also_for_the_next_program_and_damage_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    let path = directory.path().to_owned();
    sim.run(async move {
        full(&at).await;
        let local = LocalCache::open(&path, 4 * MIB).await.unwrap();
        let options = |local: &LocalCache| {
            Options::new()
                .cache_size(0)
                .read_ahead(0)
                .local_cache(Some(local.clone()))
        };
        let disk = at.open(options(&local)).await.unwrap();
        for _ in 0..2 {
            for block in 0..32u64 {
                let bytes = read(&disk, block * 65_536, 4096).await.unwrap();
                assert_eq!(bytes, [u8::try_from(block).unwrap(); 4096]);
            }
        }
        let statistics = disk.statistics();
        assert!(statistics.local_cache_hits >= 31, "{statistics:?}");
        assert!(statistics.gets < 40, "{statistics:?}");
        // Block 0 is one of zeroes, and has no record.
        assert_eq!(local.size(), 31 * 65_536);

        // Another program, and a file with other bytes, which are those of no block there.
        let file = std::fs::read_dir(&path)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        std::fs::write(&file, vec![99; 65_536]).unwrap();
        let local = LocalCache::open(&path, 4 * MIB).await.unwrap();
        assert_eq!(local.size(), 31 * 65_536);
        let disk = at.open(options(&local)).await.unwrap();
        for block in 0..32u64 {
            let bytes = read(&disk, block * 65_536, 4096).await.unwrap();
            assert_eq!(bytes, [u8::try_from(block).unwrap(); 4096]);
        }
        assert!(disk.statistics().local_cache_hits == 30);

        // More than there is room for.
        for block in 0..256u64 {
            read(&disk, block * 65_536, 512).await.unwrap();
        }
        assert!(local.size() <= 4 * MIB);
        let files = std::fs::read_dir(&path)
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len());
        assert!(files.sum::<u64>() <= 4 * MIB + 65_536);
    });
}
