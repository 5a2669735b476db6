//! The memory that a disk takes; in a process of its own, whose peak it is.

#![cfg(target_os = "linux")]

use futures_util::stream::{self, StreamExt};
use nbd_object::{Directory, Layout, Location, Options};
use nbd_tokio::Tokio;
use std::sync::Arc;

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

/// The most memory that this process ever had, in bytes.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// 1,500 blocks all over the disk, written in part so that they are completed by stored ones in the
/// second round, are 94 MiB; with their pages, some of all levels, more.
#[tokio::test]
async fn a_tebibyte_with_sixty_four_requests_in_flight_takes_no_more_than_its_limits() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Directory::open(directory.path()).unwrap());
    let at = Location::new(store, "disk", Tokio::current());
    at.create(TIB, Layout::default()).await.unwrap();
    let limits = Options::new()
        .dirty_limit(16 * MIB)
        .cache_size(16 * MIB)
        .map_cache_size(4 * MIB);
    let disk = at.open(limits).await.unwrap();
    let before = peak().unwrap();
    let offset = |number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (TIB / 65_536) * 65_536;
    for round in 1..=2u8 {
        let writes = (0..1500).map(|number| {
            let disk = &disk;
            async move {
                disk.write(offset(number) + u64::from(round) * 8192, &[round; 40_960])
                    .await
            }
        });
        let written: Vec<_> = stream::iter(writes).buffer_unordered(64).collect().await;
        assert!(written.iter().all(Result::is_ok));
        disk.flush().await.unwrap();
    }
    let reads = (0..4000u64).map(|number| {
        let disk = &disk;
        async move {
            let read = disk.read(offset(number % 1500), 65_536).await.unwrap();
            let mut bytes = vec![9; 65_536];
            read.copy_to_slice(&mut bytes);
            assert_eq!(
                (bytes[0], bytes[8192], bytes[16_384], bytes[57_344 - 1]),
                (0, 1, 2, 2)
            );
        }
    });
    stream::iter(reads)
        .buffer_unordered(64)
        .collect::<Vec<()>>()
        .await;
    let taken = peak().unwrap() - before;
    let statistics = disk.statistics();
    eprintln!("{} MiB at most; {statistics:?}", taken / MIB);
    assert!(
        statistics.cache_misses > 2000,
        "the cache is smaller than the data"
    );
    // The limits, half of the cache for gets, and this test's requests are 48 MiB. The rest is the
    // allocator's.
    assert!(taken < 80 * MIB, "{} MiB", taken / MIB);
}
