//! Writes of the same bytes that are in flight together.

use super::{
    pipe::{Cut, Pipe},
    recovery::{Machine, killer, options, policy},
    server::{Behaviour, serve},
    sim::{Sim, join, join_all},
};
use crate::{
    Memory, NamedExports,
    client::{ConnectOptions, Error},
    runtime::Runtime,
};
use nbd_proto::{BlockSizes, CommandFlags};
use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

#[test]
fn changes_of_the_same_bytes_stay_in_the_order_in_which_they_were_begun() {
    let mut kills = 0;
    for seed in 0..60 {
        let sim = Sim::new(seed);
        // A server that carries out requests in any order.
        let machine = Machine::start(&sim, true);
        kills += sim.run(async {
            let client = options(&sim, policy().keep_unflushed(1 << 20))
                .connections(1 + usize::try_from(seed % 3).unwrap())
                .connect("nbd://localhost")
                .await
                .unwrap();
            let client = &client;
            let done = AtomicBool::new(false);
            let load = async {
                for round in 0..20_u8 {
                    // The writes are begun in this order, and none waits for the others.
                    join_all((1..=4_u8).map(|n| async move {
                        let (at, len) = (u64::from(n) * 50, 1000);
                        if (round + n) % 4 == 0 {
                            let flags = CommandFlags::NONE;
                            client.write_zeroes(at, len, flags).await.unwrap();
                        } else {
                            let data = vec![round * 4 + n; 1000];
                            client.write(data, at).await.unwrap();
                        }
                    }))
                    .await;
                    // Kept writes have to be replayed between two kills.
                    client.flush().await.unwrap();
                    let found = client.read(50, 1150).await.unwrap();
                    for (at, byte) in (50_usize..).zip(&found[..]) {
                        let last = u8::try_from((at / 50).min(4)).unwrap();
                        let expected = match (round + last) % 4 {
                            0 => 0,
                            _ => round * 4 + last,
                        };
                        assert_eq!(*byte, expected, "at {at} in round {round}");
                    }
                }
                done.store(true, Ordering::Relaxed);
            };
            join(load, killer(&sim, &machine, &done)).await.1
        });
    }
    assert!(kills > 200, "only {kills} kills");
}

#[test]
fn a_change_waits_for_the_answer_to_another_one_and_not_for_its_task() {
    let timeout = Duration::from_secs(4);
    // A write that is not kept needs a flush, which only its own task sends.
    for (limit, is_waited_for) in [(0, false), (1 << 20, false), (1, true)] {
        let sim = Sim::new(1);
        Machine::start(&sim, false);
        sim.run(async {
            let options = options(&sim, policy().keep_unflushed(limit));
            let options = options.request_timeout(Some(timeout));
            let client = options.connect("nbd://localhost").await.unwrap();
            let mut first = pin!(client.write(vec![1; 10], 0));
            let elsewhere = &mut Context::from_waker(Waker::noop());
            assert!(first.as_mut().poll(elsewhere).is_pending());
            let second = client.write(vec![2; 10], 5).await;
            if is_waited_for {
                let error = second.unwrap_err();
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
                assert_eq!(sim.now(), timeout);
                first.await.unwrap();
                client.write(vec![2; 10], 5).await.unwrap();
            } else {
                second.unwrap();
                assert!(sim.now() < timeout, "{:?}", sim.now());
                first.await.unwrap();
            }
            let expected = [[1; 5], [2; 5], [2; 5]].concat();
            assert_eq!(client.read(0, 15).await.unwrap()[..], expected);
        });
    }
}

#[test]
fn many_queued_changes_are_dropped_in_time_in_proportion_to_their_number() {
    let sim = Sim::new(1);
    Machine::start(&sim, false);
    sim.run(async {
        let options = options(&sim, policy());
        let client = options.connect("nbd://localhost").await.unwrap();
        let elsewhere = &mut Context::from_waker(Waker::noop());
        // Of the same bytes, and of others. With quadratic time this would take a minute.
        for step in [0, 8] {
            let mut writes: Vec<_> = (0..30_000)
                .map(|n| Box::pin(client.write(vec![1; 8], n * step)))
                .collect();
            for write in &mut writes {
                assert!(write.as_mut().poll(elsewhere).is_pending());
            }
            writes.into_iter().for_each(drop); // the oldest first
        }
        client.write(vec![2; 512], 0).await.unwrap();
        assert_eq!(client.read(0, 512).await.unwrap()[..], [2; 512]);
    });
}

/// Begins a future, polls it no more often than this, and drops it.
async fn begin(future: impl Future, polls: usize) {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        left = left.saturating_sub(1);
        if future.as_mut().poll(cx).is_ready() || left == 0 {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
}

#[test]
fn a_dropped_write_of_part_of_a_block_does_not_undo_another() {
    for seed in 0..200 {
        let sim = Sim::new(seed);
        let disk = Arc::new(
            Memory::new(1 << 20).with_block_sizes(BlockSizes::new(4096, 4096, 1 << 20).unwrap()),
        );
        let server = sim.clone();
        sim.on_connect(move |pipe: Pipe| {
            let exports = Arc::new(NamedExports::single(disk.clone()));
            let behaviour = Behaviour {
                shuffle: true,
                ..Behaviour::default()
            };
            serve(&server, pipe.cut(Cut::Random), exports, behaviour);
            Ok(())
        });
        sim.run(async {
            let options = ConnectOptions::with_runtime(sim.clone());
            let client = options.connect("nbd://localhost").await.unwrap();
            for round in 1..20_u8 {
                // Dropped while it reads the block, or when the block is in flight.
                let polls = 1 + sim.chance().below(6);
                begin(client.write(vec![round; 100], 0), polls).await;
                client.write(vec![round; 100], 2000).await.unwrap();
                let found = client.read(2000, 100).await.unwrap();
                assert_eq!(&found[..], [round; 100], "seed {seed}, {polls} polls");
            }
            sim.sleep(Duration::from_secs(1)).await;
            let found = client.read(2000, 100).await.unwrap();
            assert_eq!(&found[..], [19; 100], "in the end");
        });
    }
}
