//! The client as programs use it.

use super::{
    pipe::{Cut, Pipe},
    server::{Behaviour, Log, serve},
    sim::{Sim, join, join_all},
};
use crate::{
    Export, Memory, NamedExports,
    client::{ConnectOptions, Error, StatusRun, tasks::Client},
    runtime::Runtime,
};
use bytes::BytesMut;
use nbd_proto::{
    BlockSizes, Command, CommandFlags, ContextName, Errno, Failure, HeaderStyle, Misuse,
    client::Limits,
};
use std::{sync::Arc, time::Duration};

const NONE: CommandFlags = CommandFlags::NONE;
pub(super) const SIZE: u64 = 1 << 20;

/// Serves an export to every client that connects, and logs the requests.
pub(super) fn host(sim: &Sim, export: Arc<dyn Export>, cut: Cut, shuffle: bool) -> Log {
    let log = Log::default();
    let behaviour = Behaviour {
        shuffle,
        log: log.clone(),
        ..Behaviour::default()
    };
    let exports = Arc::new(NamedExports::single(export));
    let server = sim.clone();
    sim.on_connect(move |pipe: Pipe| {
        serve(&server, pipe.cut(cut), exports.clone(), behaviour.clone());
        Ok(())
    });
    log
}

pub(super) fn options(sim: &Sim) -> ConnectOptions<Sim> {
    ConnectOptions::with_runtime(sim.clone())
        .context(ContextName::base_allocation())
        .limits(Limits {
            payload: 64 << 10,
            ..Limits::default()
        })
}

pub(super) fn memory(minimum: u32) -> Memory {
    let sizes = BlockSizes::new(minimum, 4096, 64 << 10).unwrap();
    Memory::new(SIZE).with_block_sizes(sizes)
}

/// An export that promises nothing.
struct Zeroes;

impl Export for Zeroes {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Failure> {
        buf.fill(0);
        Ok(())
    }
}

fn is_send<T: Send>(value: T) -> T {
    value
}

#[test]
fn futures_can_move_between_threads() {
    let sim = Sim::new(1);
    host(&sim, Arc::new(memory(1)), Cut::Whole, false);
    sim.run(is_send(async {
        let client = options(&sim).connect("nbd://localhost").await.unwrap();
        is_send(client.read(0, 10)).await.unwrap();
        is_send(client.write(vec![1; 10], 0)).await.unwrap();
        is_send(client.extents(0..10).next())
            .await
            .unwrap()
            .unwrap();
        is_send(client.disconnect()).await.unwrap();
    }));
}

#[test]
fn ranges_of_any_length_and_place_are_read_and_written() {
    // C-119, C-122, C-124, C-170
    for (seed, minimum) in [(1, 1), (2, 512), (3, 4096), (4, 1)] {
        for connections in [1, 3] {
            let sim = Sim::new(seed);
            let export = Arc::new(memory(minimum));
            host(&sim, export.clone(), Cut::Random, seed > 1);
            sim.run(async {
                let options = options(&sim)
                    .connections(connections)
                    .extended_headers(seed != 4)
                    .structured_replies(seed != 4);
                let client = options.connect("nbd://localhost").await.unwrap();
                assert_eq!(client.connections(), connections);
                let mut model = vec![0; usize::try_from(SIZE).unwrap()];
                let chance = sim.chance();
                for round in 0..120_u8 {
                    let most = [1, 600, 10_000, 300_000][chance.below(4)];
                    let len = chance.below(most + 1);
                    let at = chance.below(model.len() - len + 1);
                    let own = &mut model[at..at + len];
                    match chance.below(4) {
                        0 => {
                            own.iter_mut().enumerate().for_each(|(n, byte)| {
                                *byte = round ^ u8::try_from(n & 0xff).unwrap();
                            });
                            client.write(own.to_vec(), at as u64).await.unwrap();
                        }
                        1 => {
                            let flags = CommandFlags::FUA;
                            own.fill(round);
                            let data = own.to_vec();
                            client.write_with(data, at as u64, flags).await.unwrap();
                        }
                        2 => assert!(*client.read(at as u64, len).await.unwrap() == *own),
                        _ => {
                            let buffer = BytesMut::zeroed(len);
                            let buffer = client.read_into(buffer, at as u64).await.unwrap();
                            assert!(*buffer == *own);
                        }
                    }
                }
                let mut now = vec![0; model.len()];
                export.read(0, &mut now).unwrap();
                assert!(now == model);
                client.disconnect().await.unwrap();
            });
        }
    }
}

#[test]
fn parts_of_one_block_are_written_by_many_tasks_at_once() {
    let sim = Sim::new(5);
    let export = Arc::new(memory(4096));
    host(&sim, export.clone(), Cut::Random, true);
    sim.run(async {
        let client = options(&sim).connect("nbd://localhost").await.unwrap();
        let client = &client;
        join_all((0..64_u8).map(|n| async move {
            let offset = u64::from(n) * 100;
            client.write(vec![n; 100], offset).await.unwrap();
        }))
        .await;
        let now = client.read(0, 6400).await.unwrap();
        for (n, part) in now.chunks(100).enumerate() {
            assert!(part.iter().all(|byte| usize::from(*byte) == n), "{n}");
        }
    });
}

#[test]
fn zeroes_are_written_apart_from_parts_of_the_same_block() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        host(&sim, Arc::new(memory(4096)), Cut::Random, true);
        sim.run(async {
            let client = options(&sim).connect("nbd://localhost").await.unwrap();
            client.write(vec![7; 4096], 0).await.unwrap();
            let part = client.write(vec![1; 100], 0);
            let zeroes = client.write_zeroes(0, 4096, NONE);
            let (part, zeroes) = join(part, zeroes).await;
            part.unwrap();
            zeroes.unwrap();
            let now = client.read(100, 3996).await.unwrap();
            assert!(now.iter().all(|byte| *byte == 0), "the old data is back");
        });
    }
}

#[test]
fn every_command_is_carried_out() {
    // C-178, C-179, C-180, C-181, C-183
    let sim = Sim::new(6);
    host(&sim, Arc::new(memory(512)), Cut::Whole, false);
    sim.run(async {
        let client = options(&sim).connect("nbd://localhost").await.unwrap();
        assert_eq!(
            (client.size(), client.mode()),
            (SIZE, HeaderStyle::Extended)
        );
        client.write(vec![1; 200_000], 0).await.unwrap();
        client.flush().await.unwrap();
        client.trim(0, 65_536, NONE).await.unwrap();
        client.cache(0, SIZE).await.unwrap();
        let zeroes = client.write_zeroes(65_536, 65_536, CommandFlags::NO_HOLE);
        zeroes.await.unwrap();
        let back = client
            .read_with(0, 131_072 / 2, CommandFlags::DF)
            .await
            .unwrap();
        assert!(back.iter().all(|byte| *byte == 0));
        for (offset, len) in [(0, 0), (SIZE, 0)] {
            assert!(client.read(offset, len).await.unwrap().is_empty());
            client.write(vec![], offset).await.unwrap();
            client.trim(offset, len as u64, NONE).await.unwrap();
        }
        let outside = client.read(SIZE - 1, 2).await.unwrap_err();
        assert!(matches!(outside, Error::Misuse(Misuse::OutOfBounds { .. })));
        for len in [usize::MAX, 1 << 40] {
            let huge = client.read_with(0, len, NONE).await.unwrap_err();
            assert!(matches!(huge, Error::Misuse(_)), "{huge:?}");
        }
        let unaligned = client.trim(1, 512, NONE).await.unwrap_err();
        assert!(matches!(unaligned, Error::Misuse(Misuse::Unaligned { .. })));
        assert!(client.read(0, 1).await.is_ok());
        let status = client.block_status(0, SIZE, NONE).await.unwrap();
        assert_eq!(status.len(), 1);
        let ids = [client.contexts()[0].id];
        let of = client.block_status_of(&ids, 0, 512, CommandFlags::REQ_ONE);
        assert_eq!(of.await.unwrap()[0].extents.len(), 1);
        client.disconnect().await.unwrap();
        let late = client.clone().read(0, 1).await.unwrap_err();
        assert!(late.is_lost() && client.is_lost());
    });
}

#[test]
fn extents_are_walked_to_the_end_of_the_range() {
    // C-246, C-247
    let sim = Sim::new(7);
    host(&sim, Arc::new(memory(512)), Cut::Random, false);
    sim.run(async {
        let client = options(&sim).connect("nbd://localhost").await.unwrap();
        client.write(vec![1; 65_536], 65_536).await.unwrap();
        let mut extents = client.extents(1000..200_000);
        let mut runs = Vec::new();
        while let Some(run) = extents.next().await {
            let StatusRun {
                offset,
                len,
                status,
                ..
            } = run.unwrap();
            runs.push((offset, len, status[0]));
        }
        assert_eq!(
            runs,
            [(1000, 64_536, 3), (65_536, 65_536, 0), (131_072, 68_928, 3)]
        );
        assert!(extents.next().await.is_none());
    });
}

#[test]
fn requests_are_spread_over_connections_and_a_flush_covers_them_all() {
    // C-189, C-190, C-191, C-192
    let sim = Sim::new(8);
    let log = host(&sim, Arc::new(memory(1)), Cut::Whole, true);
    sim.run(async {
        let options = options(&sim).connections(4);
        let client = options.connect("nbd://localhost").await.unwrap();
        assert_eq!(client.connections(), 4);
        let client = &client;
        join_all((0..40).map(|n| client.write(vec![1; 100], n * 100))).await;
        client.flush().await.unwrap();
        let log = log.lock().unwrap();
        assert_eq!(log.len(), 41);
        assert!(
            log[40].starts_with("Flush"),
            "only after every reply: {log:?}"
        );
    });
}

#[test]
fn a_server_that_keeps_no_connections_consistent_gets_one() {
    // C-189
    let sim = Sim::new(8);
    host(&sim, Arc::new(Zeroes), Cut::Whole, true);
    sim.run(async {
        let options = options(&sim).connections(4);
        let client = options.connect("nbd://localhost").await.unwrap();
        assert!(!client.export().can_multi_conn());
        assert_eq!(client.connections(), 1);
    });
}

#[test]
fn dropping_the_last_client_disconnects() {
    // C-186
    let sim = Sim::new(8);
    let log = host(&sim, Arc::new(memory(1)), Cut::Whole, false);
    sim.run(async {
        let options = options(&sim).connections(2);
        let client = options.connect("nbd://localhost").await.unwrap();
        client.write(vec![1; 10], 0).await.unwrap();
        let other = client.clone();
        drop(client);
        other.read(0, 10).await.unwrap();
        drop(other);
        sim.sleep(Duration::from_millis(1)).await;
    });
    assert_eq!(sim.tasks(), 0);
    let log = log.lock().unwrap();
    assert_eq!(log[2..], ["Disconnect", "Disconnect"]);
}

#[test]
fn a_command_that_the_server_fails_is_an_error_and_others_go_on() {
    let sim = Sim::new(8);
    let export = Memory::new(SIZE).with_limit(64 << 10);
    host(&sim, Arc::new(export), Cut::Whole, false);
    sim.run(async {
        let client = options(&sim).connect("nbd://localhost").await.unwrap();
        let error = client.write(vec![1; 512 << 10], 0).await.unwrap_err();
        let Error::Failed { command, source } = error else {
            panic!("{error:?}");
        };
        assert_eq!((command, source.errno), (Command::Write, Errno::NoSpc));
        client.read(0, 512 << 10).await.unwrap();
    });
}

#[test]
fn any_request_of_any_length_can_be_dropped_at_any_time() {
    for seed in 0..40 {
        let sim = Sim::new(seed);
        let minimum = [1, 4096][usize::try_from(seed).unwrap() % 2];
        host(&sim, Arc::new(memory(minimum)), Cut::Random, true);
        sim.run(async {
            let options = options(&sim)
                .connections(1 + usize::try_from(seed % 3).unwrap())
                .bytes_in_flight(100_000);
            let client: Client<Sim> = options.connect("nbd://localhost").await.unwrap();
            let (client, chance) = (&client, sim.chance());
            join_all((0..4_u64).map(|n| async move {
                let own = n * 262_144;
                for round in 0..8_u8 {
                    let polls = chance.below(60);
                    let at = own + 131_072 + chance.below(1000) as u64;
                    let len = chance.below(130_000);
                    match chance.below(3) {
                        0 => drop(some_polls(client.read(at, len), polls).await),
                        1 => drop(some_polls(client.write(vec![1; len], at), polls).await),
                        _ => drop(some_polls(client.extents(at..at + 4096).next(), polls).await),
                    }
                    let data = vec![round ^ 0x5a; chance.below(131_072)];
                    client.write(data.clone(), own).await.unwrap();
                    assert!(client.read(own, data.len()).await.unwrap() == data);
                }
            }))
            .await;
            client.disconnect().await.unwrap();
        });
    }
}

/// Polls a future at most so many times, then drops it; its output if it was done.
async fn some_polls<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return std::task::Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
            polled => polled.map(Some),
        }
    })
    .await
}
