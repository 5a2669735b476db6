//! Calls from several threads at once, with backpressure all the time.

use nbd_object::{Disk, Error, Layout, Location, Options, object_store::memory::InMemory};
use nbd_tokio::Tokio;
use std::{sync::Arc, time::Duration};

const TASKS: u64 = 8;

/// A task has every eighth sector, so that it shares its blocks with all others.
async fn work(disk: Disk, number: u64) -> Result<(), Error> {
    let mut values = [0; 64];
    let mut random = number;
    for step in 0..600u64 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(number);
        let [.., place, choice] = random.to_le_bytes();
        let offset = (u64::from(place % 64) * 37 * TASKS + number) * 512;
        let value = step.to_le_bytes()[0] | 1;
        let known = &mut values[usize::from(place % 64)];
        match choice % 8 {
            0..4 => {
                disk.write(offset, &[value; 512]).await?;
                *known = value;
            }
            4 => {
                disk.write_zeroes(offset, 512).await?;
                *known = 0;
            }
            5 if step % 5 == 0 => disk.flush().await?,
            6 if step % 20 == 0 => drop(disk.collect_garbage().await?),
            6 if step % 20 == 10 => drop(disk.compact(50).await?),
            7 if step % 4 == 0 => drop(disk.extents(0, disk.size(), 100).await?),
            _ => {
                let data = match disk.read_now(offset, 512) {
                    Some(data) => data?,
                    None => disk.read(offset, 512).await?,
                };
                let mut bytes = [7; 512];
                data.copy_to_slice(&mut bytes);
                assert_eq!(bytes, [*known; 512], "task {number}, step {step}");
            }
        }
    }
    disk.flush().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_on_several_threads_read_their_own_writes_and_none_waits_for_ever() {
    let at = Location::new(Arc::new(InMemory::new()), "disk", Tokio::current());
    at.create(64 << 20, Layout::default()).await.unwrap();
    let limits = Options::new()
        .dirty_limit(1 << 20)
        .cache_size(1 << 20)
        .map_cache_size(20_000)
        .horizon(Duration::ZERO);
    let disk = at.open(limits).await.unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|number| tokio::spawn(work(disk.clone(), number)))
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let report = at.check(None, &Options::new()).await.unwrap();
    assert_eq!(report.damages, []);
    assert!(disk.statistics().commits > 20, "{:?}", disk.statistics());
}
