//! Many calls in flight, also for sectors of the same blocks.

use super::{place, read, sim::*};
use crate::{Disk, Error, Layout, Options, Retry};
use object_store::memory::InMemory;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

const WRITERS: u64 = 5;
const SECTORS: u64 = 600 * 8;

/// The values that a sector may have after a crash: that of the last flush, and all since.
#[derive(Clone)]
struct Sectors(Arc<Mutex<Vec<Vec<u8>>>>);

/// A writer of every fifth sector, which knows the values of its sectors.
async fn writer(
    disk: Disk,
    number: u64,
    seed: u64,
    sectors: Sectors,
    steps: u32,
) -> Result<(), Error> {
    let mut random = fastrand::Rng::with_seed(seed * 100 + number);
    let hot = random.u64(0..SECTORS / WRITERS - 20);
    let mut since = Vec::new();
    for _ in 0..steps {
        let place = hot + random.u64(0..20);
        let sector = place * WRITERS + number;
        let at = usize::try_from(sector).unwrap();
        match random.u32(0..10) {
            0..5 => {
                let value = random.u8(..);
                sectors.0.lock().unwrap()[at].push(value);
                since.push(at);
                if let Err(error) = disk.write(sector * 512, &[value; 512]).await {
                    temporary(error)?;
                    sectors.0.lock().unwrap()[at].pop();
                    since.pop();
                }
            }
            5 => {
                sectors.0.lock().unwrap()[at].push(0);
                since.push(at);
                if let Err(error) = disk.write_zeroes(sector * 512, 512).await {
                    temporary(error)?;
                    sectors.0.lock().unwrap()[at].pop();
                    since.pop();
                }
            }
            6 => {
                // The values that are there now, and none before them, once the flush has ended.
                let counts: Vec<_> = {
                    let sectors = sectors.0.lock().unwrap();
                    since
                        .iter()
                        .map(|at: &usize| (*at, sectors[*at].len()))
                        .collect()
                };
                if let Err(error) = disk.flush().await {
                    temporary(error)?;
                    continue;
                }
                since.clear();
                let mut sectors = sectors.0.lock().unwrap();
                let mut done: Vec<usize> = Vec::new();
                for (at, count) in counts {
                    if !done.contains(&at) {
                        sectors[at].drain(..count - 1);
                        done.push(at);
                    }
                }
            }
            7 => {
                let len = 65_536.min((SECTORS - sector) * 512);
                if let Err(error) = disk.extents(sector * 512, len, 10).await {
                    temporary(error)?;
                }
            }
            _ => {
                let found = match read(&disk, sector * 512, 512).await {
                    Ok(found) => found,
                    Err(error) => {
                        temporary(error)?;
                        continue;
                    }
                };
                let expected = *sectors.0.lock().unwrap()[at].last().unwrap();
                assert_eq!(found, [expected; 512], "seed {seed}, sector {sector}");
            }
        }
    }
    loop {
        match disk.flush().await {
            Err(error) => temporary(error)?,
            Ok(()) => return Ok(()),
        }
    }
}

/// A failure of the store, after which the disk goes on.
fn temporary(error: Error) -> Result<(), Error> {
    if let Error::Store { .. } = error {
        Ok(())
    } else {
        Err(error)
    }
}

fn run(seed: u64, faults: Faults, attempts: u32, cut: Option<u64>) {
    let sim = Sim::default();
    let store = Arc::new(InMemory::new());
    let faulty = Faulty::new(store.clone(), &sim, seed, faults);
    let at = place(&sim, faulty.clone());
    let sectors = Sectors(Arc::new(Mutex::new(vec![
        vec![0];
        usize::try_from(SECTORS).unwrap()
    ])));
    let log = sectors.clone();
    let options = move || {
        Options::new()
            .retry(Retry {
                attempts,
                ..Retry::default()
            })
            .dirty_limit(1 << 20)
            .cache_size(100_000)
            .map_cache_size(20_000)
            .horizon(Duration::ZERO)
    };
    sim.run(async move {
        faulty.set(Faults::default());
        at.create(SECTORS * 512, Layout::default().block_size(4096))
            .await
            .unwrap();
        let disk = at.open(options()).await.unwrap();
        let power = cut.map(|cut| faulty.changes() + cut);
        faulty.set(Faults { power, ..faults });
        let collector = disk.clone();
        let collections = async move {
            for _ in 0..6 {
                if let Err(error) = collector.compact(80).await {
                    temporary(error)?;
                }
                if let Err(error) = collector.collect_garbage().await {
                    temporary(error)?;
                }
            }
            Ok::<_, Error>(())
        };
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| writer(disk.clone(), number, seed, log.clone(), 60))
            .collect();
        let work = std::pin::pin!(async {
            let (writers, collections) =
                futures_util::join!(futures_util::future::try_join_all(writers), collections);
            writers.unwrap();
            collections.unwrap();
        });
        let dead = std::pin::pin!(faulty.cut());
        futures_util::future::select(work, dead).await;
    });
    let sim = Sim::default();
    let at = place(&sim, Faulty::new(store, &sim, 0, Faults::default()));
    sim.run(async move {
        let disk = at.open(options()).await.unwrap();
        let found = read(&disk, 0, SECTORS * 512).await.unwrap();
        for (at, (bytes, allowed)) in found
            .chunks(512)
            .zip(sectors.0.lock().unwrap().iter())
            .enumerate()
        {
            let one = bytes.iter().all(|byte| *byte == bytes[0]);
            assert!(
                one && allowed.contains(&bytes[0]),
                "seed {seed}, cut {cut:?}, sector {at}: {} of {allowed:?}",
                bytes[0]
            );
        }
        assert_eq!(at.check(None, &options()).await.unwrap().damages, []);
    });
}

#[test]
fn writers_of_neighbouring_sectors_read_their_own_writes_on_a_store_with_faults() {
    for seed in 0..8 {
        let faults = Faults {
            latency: 30,
            failures: 5,
            lost_replies: 5,
            ..Faults::default()
        };
        run(seed, faults, 8, None);
    }
}

#[test]
fn every_flushed_sector_survives_a_power_cut_while_many_calls_are_in_flight() {
    for cut in (0..90).step_by(5) {
        run(
            cut,
            Faults {
                latency: 30,
                ..Faults::default()
            },
            1,
            Some(cut),
        );
    }
}

#[test]
fn changes_of_a_failed_commit_are_below_newer_writes() {
    for seed in 0..8 {
        let faults = Faults {
            latency: 30,
            failures: 15,
            lost_replies: 15,
            ..Faults::default()
        };
        run(seed, faults, 1, None);
    }
}
