//! Random histories that are cut off at every put, and random faults of the store.

use super::{memory, place, read, sim::*};
use crate::{Disk, Error, Layout, Location, Options, Retry};
use nbd_io::runtime::Runtime;
use object_store::memory::InMemory;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

const BLOCK: u64 = 4096;

/// More blocks than a page has slots.
const SIZE: u64 = 270 * BLOCK + 512;

/// The states of a disk that may be found after a crash: that of the last flush that was
/// acknowledged, and those after each call since.
#[derive(Clone)]
struct Allowed(Arc<Mutex<Vec<Vec<u8>>>>);

impl Allowed {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(vec![vec![
            0;
            usize::try_from(SIZE)
                .unwrap()
        ]])))
    }

    fn change(&self, change: impl FnOnce(&mut [u8])) {
        let mut states = self.0.lock().unwrap();
        let mut state = states.last().unwrap().clone();
        change(&mut state);
        states.push(state);
    }

    fn flushed(&self) {
        let mut states = self.0.lock().unwrap();
        let last = states.pop().unwrap();
        *states = vec![last];
    }

    fn last(&self) -> Vec<u8> {
        self.0.lock().unwrap().last().unwrap().clone()
    }

    fn assert_allows(&self, found: &[u8], context: &str) {
        let states = self.0.lock().unwrap();
        assert!(
            states.iter().any(|state| state == found),
            "{context}: {} states, none is found",
            states.len()
        );
    }
}

fn range(random: &mut fastrand::Rng) -> (u64, u64) {
    let sectors = SIZE / 512;
    let longest = if random.bool() { 20 } else { sectors };
    let from = random.u64(0..sectors);
    let len = random.u64(1..=longest.min(sectors - from));
    (from * 512, len * 512)
}

fn small() -> Options {
    Options::new()
        .dirty_limit(1 << 20)
        .cache_size(64 << 10)
        .map_cache_size(20_000)
        .horizon(Duration::ZERO)
}

fn span(offset: u64, len: u64) -> std::ops::Range<usize> {
    usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()
}

/// One call after another; every state that a crash may leave is in `allowed`.
async fn history(at: Location, seed: u64, steps: u32, allowed: Allowed) -> Result<(), Error> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut disk = at.open(small()).await?;
    for step in 0..steps {
        let (offset, len) = range(&mut random);
        match random.u32(0..100) {
            0..45 => {
                let len = len.min(40_960);
                let mut data = vec![0; usize::try_from(len).unwrap()];
                random.fill(&mut data);
                allowed.change(|bytes| bytes[span(offset, len)].copy_from_slice(&data));
                disk.write(offset, &data).await?;
            }
            45..55 => {
                allowed.change(|bytes| bytes[span(offset, len)].fill(0));
                disk.write_zeroes(offset, len).await?;
            }
            55..60 => {
                let first = offset.div_ceil(BLOCK) * BLOCK;
                let end = if offset + len == SIZE {
                    SIZE
                } else {
                    (offset + len) / BLOCK * BLOCK
                };
                allowed.change(|bytes| {
                    if first < end {
                        bytes[span(first, end - first)].fill(0);
                    }
                });
                disk.trim(offset, len).await?;
            }
            60..75 => {
                disk.flush().await?;
                allowed.flushed();
            }
            75..78 => {
                disk.collect_garbage().await?;
                allowed.flushed();
            }
            78..80 => {
                disk.snapshot(&format!("s{step}")).await?;
                allowed.flushed();
            }
            80..82 => {
                // A crash of the program: the contents of memory are lost.
                drop(disk);
                disk = at.open(small()).await?;
                let found = read(&disk, 0, SIZE).await?;
                allowed.assert_allows(&found, "after opening");
                *allowed.0.lock().unwrap() = vec![found];
            }
            _ => {
                let expected = allowed.last();
                assert!(
                    read(&disk, offset, len).await? == expected[span(offset, len)],
                    "seed {seed}, step {step}"
                );
            }
        }
    }
    disk.flush().await?;
    allowed.flushed();
    Ok(())
}

async fn all(disk: &Disk) -> Vec<u8> {
    read(disk, 0, SIZE).await.unwrap()
}

/// Opens the disk and all snapshots on a store without faults, and checks them.
fn assert_whole(store: &Arc<InMemory>, allowed: &Allowed, context: String) {
    let sim = Sim::default();
    let at = place(&sim, Faulty::new(store.clone(), &sim, 0, Faults::default()));
    let allowed = allowed.clone();
    sim.run(async move {
        let disk = at.open(small()).await.unwrap();
        let found = all(&disk).await;
        allowed.assert_allows(&found, &context);
        assert_eq!(
            at.check(None, &small()).await.unwrap().damages,
            [],
            "{context}"
        );
        for snapshot in at.snapshots().await.unwrap() {
            let report = at.check(Some(&snapshot.name), &small()).await.unwrap();
            assert_eq!(report.damages, [], "{context}");
        }
        // The rest is no obstacle.
        disk.write(0, &[7; 512]).await.unwrap();
        disk.collect_garbage().await.unwrap();
        let again = at.open(small()).await.unwrap();
        assert_eq!(read(&again, 0, 512).await.unwrap(), [7; 512]);
        assert!(all(&again).await[512..] == found[512..]);
    });
}

async fn created(at: &Location) {
    at.create(SIZE, Layout::default().block_size(4096))
        .await
        .unwrap();
}

#[test]
fn nothing_that_was_flushed_is_lost_when_the_power_fails_at_any_put_or_delete() {
    for seed in 0..3 {
        // A run to the end counts the requests that there are to be cut off at.
        let mut limit = None;
        let mut cut = 0;
        loop {
            let sim = Sim::default();
            let store = Arc::new(InMemory::new());
            let faulty = Faulty::new(
                store.clone(),
                &sim,
                seed,
                Faults {
                    latency: 20,
                    ..Faults::default()
                },
            );
            let at = place(&sim, faulty.clone());
            let allowed = Allowed::new();
            let (log, power) = (allowed.clone(), faulty.clone());
            let at_cut = limit.map(|_| cut);
            sim.run(async move {
                created(&at).await;
                let power_at = at_cut.map(|cut| power.changes() + cut);
                power.set(Faults {
                    latency: 20,
                    power: power_at,
                    ..Faults::default()
                });
                let run = std::pin::pin!(history(at, seed, 40, log));
                let dead = std::pin::pin!(power.cut());
                futures_util::future::select(run, dead).await;
            });
            assert_whole(&store, &allowed, format!("seed {seed}, cut at {cut}"));
            match limit {
                None => limit = Some(faulty.changes() - 6),
                Some(last) if cut >= last => break,
                // All of the first ones, and then some.
                Some(_) => cut += if cut < 24 { 1 } else { 5 },
            }
        }
    }
}

#[test]
fn a_store_that_fails_loses_replies_and_is_slow_changes_nothing() {
    for seed in 0..10 {
        let sim = Sim::default();
        let store = Arc::new(InMemory::new());
        let faults = Faults {
            latency: 50,
            failures: 10,
            lost_replies: 10,
            ..Faults::default()
        };
        let faulty = Faulty::new(store.clone(), &sim, seed, faults);
        let at = place(&sim, faulty);
        let allowed = Allowed::new();
        let log = allowed.clone();
        sim.run(async move {
            created(&at).await;
            history(at, seed, 120, log).await.unwrap();
        });
        assert_whole(&store, &allowed, format!("seed {seed}"));
    }
}

#[test]
fn a_flush_that_failed_while_the_store_was_away_is_made_good_by_the_next_one() {
    let sim = Sim::default();
    let (store, at) = memory(&sim);
    sim.run(async move {
        at.create(1 << 20, Layout::default()).await.unwrap();
        let retry = Retry {
            attempts: 2,
            ..Retry::default()
        };
        let disk = at.open(Options::new().retry(retry)).await.unwrap();
        disk.write(0, &[1; 4096]).await.unwrap();
        disk.write_zeroes(131_072, 131_072).await.unwrap();
        store.set(Faults {
            failures: 100,
            ..Faults::default()
        });
        assert!(matches!(disk.flush().await, Err(Error::Store { .. })));
        disk.write(512, &[2; 512]).await.unwrap();
        disk.write(131_072, &[3; 512]).await.unwrap();
        // Its puts are carried out, and the replies lost: also the one to the swap of the head.
        store.set(Faults {
            lost_replies: 100,
            ..Faults::default()
        });
        assert!(disk.flush().await.is_err());
        store.set(Faults::default());
        disk.flush().await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        let bytes = read(&disk, 0, 262_144).await.unwrap();
        assert!(bytes[..512].iter().all(|byte| *byte == 1));
        assert!(bytes[512..1024].iter().all(|byte| *byte == 2));
        assert!(bytes[1024..4096].iter().all(|byte| *byte == 1));
        assert!(bytes[131_072..131_584].iter().all(|byte| *byte == 3));
        assert!(bytes[131_584..].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn puts_whose_replies_are_lost_are_successes_and_are_not_made_twice() {
    let sim = Sim::default();
    let (store, at) = memory(&sim);
    store.set(Faults {
        forgetful: true,
        ..Faults::default()
    });
    sim.run(async move {
        at.create(1 << 20, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        assert_eq!(at.info(None).await.unwrap().generation, 1);
        disk.write(0, &[1; 4096]).await.unwrap();
        disk.flush().await.unwrap();
        assert_eq!(at.info(None).await.unwrap().generation, 2);
        disk.snapshot("one").await.unwrap();
        assert!(matches!(
            disk.snapshot("one").await,
            Err(Error::AlreadyExists(_))
        ));
        disk.write(0, &[2; 4096]).await.unwrap();
        disk.flush().await.unwrap();
        let info = at.info(None).await.unwrap();
        assert_eq!((info.epoch, info.generation), (1, 3));
        let view = at
            .open_read_only(Some("one"), Options::new())
            .await
            .unwrap();
        assert_eq!(read(&view, 0, 4096).await.unwrap(), [1; 4096]);
    });
}

#[test]
fn a_store_that_has_never_answered_is_given_up_soon_and_one_that_has_is_waited_for() {
    let sim = Sim::default();
    let (store, at) = memory(&sim);
    let clock = sim.clone();
    sim.run(async move {
        let away = Faults {
            failures: 100,
            ..Faults::default()
        };
        store.set(away);
        assert!(matches!(at.info(None).await, Err(Error::Store { .. })));
        let soon = clock.now();
        assert!(soon <= Duration::from_secs(4), "{soon:?}");
        store.set(Faults::default());
        at.create(1 << 20, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        disk.write(0, &[1; 4096]).await.unwrap();
        store.set(away);
        let begin = clock.now();
        assert!(matches!(disk.flush().await, Err(Error::Store { .. })));
        let waited = clock.now() - begin;
        assert!(waited >= Duration::from_secs(25), "{waited:?}");
    });
}
