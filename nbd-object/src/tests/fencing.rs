//! Two writers of one disk.

use super::{place, read, sim::*};
use crate::{Error, Layout, Options};
use object_store::memory::InMemory;
use std::sync::Arc;

const SIZE: u64 = 4 << 20;

fn bytes(value: u8) -> Vec<u8> {
    vec![value; 100 * 1024]
}

/// The older writer is held up before one of its puts, and goes on when the newer one has the disk.
#[test]
fn the_older_writer_is_fenced_at_whatever_put_it_is_and_changes_nothing_any_more() {
    let mut fenced = 0;
    for put in 1..30 {
        let sim = Sim::default();
        let store = Arc::new(InMemory::new());
        let slow = Faulty::new(
            store.clone(),
            &sim,
            put,
            Faults {
                latency: 5,
                ..Faults::default()
            },
        );
        let quick = Faulty::new(store, &sim, put, Faults::default());
        let (older, newer) = (place(&sim, slow.clone()), place(&sim, quick));
        let tasks = sim.clone();
        fenced += sim.run(async move {
            newer
                .create(SIZE, Layout::default().block_size(4096))
                .await
                .unwrap();
            let disk = older.open(Options::new()).await.unwrap();
            disk.write(SIZE - 512, &[9; 512]).await.unwrap();
            disk.flush().await.unwrap();
            let begin = slow.changes();
            let (ended, end) = tokio::sync::oneshot::channel();
            let writer = disk.clone();
            nbd_io::runtime::Tasks::spawn(&tasks, async move {
                let mut results = Vec::new();
                for value in 1..8 {
                    let offset = u64::from(value) * 128 * 1024;
                    let written = writer.write(offset, &bytes(value)).await;
                    results.push(match written {
                        Ok(()) => writer.flush().await,
                        failed => failed,
                    });
                }
                let _ = ended.send(results);
            });
            let held = std::pin::pin!(slow.hold(begin + put));
            let mut end = std::pin::pin!(end);
            let results = match futures_util::future::select(held, end.as_mut()).await {
                futures_util::future::Either::Left(_) => {
                    let taken = newer.open(Options::new()).await.unwrap();
                    slow.release();
                    let results = end.await.unwrap();
                    // Acknowledged flushes came before, and all others were refused.
                    let good = results.iter().take_while(|result| result.is_ok()).count();
                    for (at, result) in results.iter().enumerate() {
                        let value = u8::try_from(at + 1).unwrap();
                        let found = read(&taken, u64::from(value) * 128 * 1024, 100 * 1024)
                            .await
                            .unwrap();
                        if at < good {
                            assert!(found == bytes(value), "put {put}");
                        } else {
                            assert!(
                                matches!(result, Err(Error::Fenced { .. })),
                                "put {put}: {result:?}"
                            );
                            assert!(found.iter().all(|byte| *byte == 0), "put {put}");
                        }
                    }
                    taken.write(0, &bytes(99)).await.unwrap();
                    taken.flush().await.unwrap();
                    results
                }
                futures_util::future::Either::Right((results, _)) => results.unwrap(),
            };
            let last = newer.open(Options::new()).await.unwrap();
            assert_eq!(read(&last, SIZE - 512, 512).await.unwrap(), [9; 512]);
            assert!(
                newer
                    .check(None, &Options::new())
                    .await
                    .unwrap()
                    .damages
                    .is_empty()
            );
            results.iter().any(Result::is_err)
        }) as u32;
    }
    assert!(fenced >= 18, "only {fenced} writers were fenced");
}

#[test]
fn of_writers_that_open_at_the_same_time_one_is_left() {
    for seed in 0..20 {
        let sim = Sim::default();
        let store = Faulty::new(
            Arc::new(InMemory::new()),
            &sim,
            seed,
            Faults {
                latency: 30,
                lost_replies: 10,
                ..Faults::default()
            },
        );
        let at = place(&sim, store);
        sim.run(async move {
            at.create(SIZE, Layout::default()).await.unwrap();
            let opens: Vec<_> = (0..5).map(|_| at.open(Options::new())).collect();
            let disks = futures_util::future::join_all(opens).await;
            let mut good = 0;
            for (value, disk) in (1..).zip(&disks) {
                let Ok(disk) = disk else { continue };
                disk.write(0, &[value; 512]).await.unwrap();
                match disk.flush().await {
                    Ok(()) => good += 1,
                    Err(error) => assert!(matches!(error, Error::Fenced { .. }), "{error}"),
                }
            }
            assert_eq!(good, 1, "seed {seed}");
        });
    }
}

#[test]
fn a_writer_that_flushes_all_the_time_can_be_fenced() {
    for seed in 0..10 {
        let sim = Sim::default();
        let faults = Faults {
            latency: 20,
            ..Faults::default()
        };
        let at = place(
            &sim,
            Faulty::new(Arc::new(InMemory::new()), &sim, seed, faults),
        );
        sim.run(async move {
            at.create(SIZE, Layout::default()).await.unwrap();
            let older = at.open(Options::new()).await.unwrap();
            let writes = async {
                let mut value = 0u8;
                loop {
                    value = value.wrapping_add(1);
                    older.write(0, &[value; 512]).await?;
                    older.flush().await?;
                }
            };
            let (end, newer): (Result<(), Error>, _) =
                futures_util::join!(writes, at.open(Options::new()));
            assert!(matches!(end, Err(Error::Fenced { .. })));
            newer.unwrap().flush().await.unwrap();
        });
    }
}

#[test]
fn a_reader_that_lacks_an_object_because_of_a_newer_writer_is_fenced() {
    let sim = Sim::default();
    let at = place(
        &sim,
        Faulty::new(Arc::new(InMemory::new()), &sim, 0, Faults::default()),
    );
    sim.run(async move {
        at.create(SIZE, Layout::default()).await.unwrap();
        let older = at.open(Options::new()).await.unwrap();
        older.write(0, &bytes(1)).await.unwrap();
        older.flush().await.unwrap();
        let options = Options::new().cache_size(0);
        let older = at
            .open(options.clone().horizon(std::time::Duration::ZERO))
            .await
            .unwrap();
        let viewer = at.open_read_only(None, options.clone()).await.unwrap();
        let newer = at
            .open(options.horizon(std::time::Duration::ZERO))
            .await
            .unwrap();
        newer.write_zeroes(0, SIZE).await.unwrap();
        newer.collect_garbage().await.unwrap();
        assert!(matches!(
            older.read(0, 512).await,
            Err(Error::Fenced { .. })
        ));
        assert!(matches!(
            older.write(0, &[1; 512]).await,
            Err(Error::Fenced { .. })
        ));
        assert!(viewer.read(0, 512).await.unwrap_err().is_missing_object());
    });
}
