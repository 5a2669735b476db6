//! Writes that are kept until they are flushed: their order, and their number.

use super::{
    pipe::Cutter,
    recovery::{Machine, options, policy},
    server::{Behaviour, Log, serve},
    sim::{Sim, join_all},
};
use crate::{
    Memory, NamedExports,
    client::{Error, tasks::Client},
    runtime::Runtime,
};
use bytes::Bytes;
use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, atomic::Ordering},
    task::Poll,
    time::Duration,
};

async fn connect(sim: &Sim, limit: u64) -> Client<Sim> {
    let options = options(sim, policy().keep_unflushed(limit));
    options.connect("nbd://localhost").await.unwrap()
}

#[test]
fn a_write_that_is_not_awaited_is_kept_too() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let client = connect(&sim, 1 << 20).await;
        {
            let mut write = pin!(client.write(vec![1; 512], 0));
            let begun = poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx).is_pending()));
            assert!(begun.await);
        }
        assert_eq!(client.read(0, 512).await.unwrap()[..], [1; 512]);
        machine.kill();
        assert_eq!(client.read(0, 512).await.unwrap()[..], [1; 512]);
    });
}

/// Data that notes when it is dropped.
struct Owned(
    Vec<u8>,
    #[expect(dead_code, reason = "it is counted")] Arc<()>,
);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn a_small_part_of_a_large_buffer_does_not_hold_all_of_it() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let client = connect(&sim, 1 << 20).await;
        let held = Arc::new(());
        for number in 0..32 {
            let whole = Bytes::from_owner(Owned(vec![number; 64 << 10], held.clone()));
            let at = u64::from(number) * 4096;
            client.write(whole.slice(8192..12_288), at).await.unwrap();
        }
        assert_eq!(Arc::strong_count(&held), 1);
        machine.kill();
        for number in 0..32 {
            let found = client.read(u64::from(number) * 4096, 4096).await.unwrap();
            assert_eq!(found[..], [number; 4096]);
        }
    });
}

#[test]
fn a_write_that_there_is_no_room_for_is_flushed_before_it_counts() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let client = connect(&sim, 10_000).await;
        client.write(vec![1; 512], 0).await.unwrap();
        client.write(vec![2; 50_000], 0).await.unwrap();
        assert_eq!(
            machine.disk.contents.lock().unwrap().1[..50_000],
            [2; 50_000]
        );
        client.write(vec![3; 512], 0).await.unwrap();
        machine.kill();
        let found = client.read(0, 50_000).await.unwrap();
        assert_eq!(found[..512], [3; 512]);
        assert_eq!(found[512..], [2; 50_000 - 512]);
    });
}

#[test]
fn writes_that_there_is_no_room_for_share_flushes() {
    const WRITES: u8 = 16;
    let mut flushes = 0;
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let machine = Machine::start(&sim, false);
        sim.run(async {
            let client = connect(&sim, 1000).await;
            let write = async |number: u8| {
                let at = u64::from(number) * 4096;
                client.write(vec![number; 4000], at).await.unwrap();
                // It counts, and so it has to be on stable storage.
                let stable = machine.disk.contents.lock().unwrap();
                let at = usize::from(number) * 4096;
                assert_eq!(stable.1[at..at + 4000], [number; 4000]);
            };
            join_all((0..WRITES).map(write)).await;
        });
        flushes += machine.disk.flushes.load(Ordering::Relaxed);
    }
    assert!(flushes < 20 * usize::from(WRITES) / 2, "{flushes}");
}

#[test]
fn a_replay_that_is_not_wanted_any_more_ends_with_its_connection() {
    let sim = Sim::new(1);
    let export = Arc::new(Memory::new(4096));
    let cutters = Arc::<Mutex<Vec<Cutter>>>::default();
    let (server, log, open) = (sim.clone(), Log::default(), cutters.clone());
    let requests = log.clone();
    sim.on_connect(move |pipe| {
        let mut open = open.lock().unwrap();
        open.push(pipe.cutter());
        let is_second = open.len() == 2;
        let behaviour = Behaviour {
            silent: is_second.then(|| Arc::new(|_| true) as _),
            log: if is_second {
                log.clone()
            } else {
                Log::default()
            },
            ..Behaviour::default()
        };
        let exports = Arc::new(NamedExports::single(export.clone()));
        serve(&server, pipe, exports, behaviour);
        Ok(())
    });
    sim.run(async {
        let client = connect(&sim, 1 << 20).await;
        client.write(vec![7; 512], 0).await.unwrap();
        cutters.lock().unwrap()[0].cut();
        while requests.lock().unwrap().is_empty() {
            sim.sleep(Duration::from_millis(1)).await;
        }
        client.reconnect_now().unwrap();
        assert_eq!(client.read(0, 512).await.unwrap()[..], [7; 512]);
        // Or else the rest of it would be sent now, over data that was written meanwhile.
        assert!(cutters.lock().unwrap()[1].is_closed());
    });
}

#[test]
fn unflushed_writes_may_be_lost_with_any_connection_that_the_server_closes() {
    for keeps in [false, true] {
        let sim = Sim::new(1);
        let machine = Machine::start(&sim, false);
        sim.run(async {
            let policy = policy().keep_unflushed(if keeps { 1 << 20 } else { 0 });
            let options = options(&sim, policy).connections(2);
            let client = options.connect("nbd://localhost").await.unwrap();
            client.write(vec![7; 512], 0).await.unwrap();
            // No request is in flight, so that this breaks no rule. The client sees no more of a
            // server that ends and of another one that takes its place.
            machine.connections.lock().unwrap()[1].end();
            machine.disk.crash();
            sim.sleep(Duration::from_secs(2)).await;
            if keeps {
                assert_eq!(client.read(0, 512).await.unwrap()[..], [7; 512]);
                client.flush().await.unwrap();
                assert_eq!(machine.disk.contents.lock().unwrap().1[..512], [7; 512]);
            } else {
                let error = client.flush().await.unwrap_err();
                assert!(matches!(error, Error::Unflushed), "{error:?}");
            }
        });
    }
}
