//! The times at which a client tries to come back, and those at which it stops.

use super::{
    pipe::{Cutter, Pipe},
    recovery::{Disk, Machine, options, policy},
    server::{Behaviour, serve},
    sim::Sim,
};
use crate::{
    Export, Memory, NamedExports, ReadOnly,
    client::{ConnectionState, Error, Lost, Reconnect, tasks::Client},
    runtime::Runtime,
};
use nbd_proto::{BlockSizes, Errno, Failure, TransmissionFlags};
use std::{
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

/// Serves connections by their number, from 0, unless there is nothing to serve.
pub(super) fn host(
    sim: &Sim,
    export: impl Fn(usize) -> Option<Arc<dyn Export>> + Send + Sync + 'static,
) -> (Arc<AtomicUsize>, Arc<Mutex<Vec<Cutter>>>) {
    let count = Arc::new(AtomicUsize::new(0));
    let connections = Arc::<Mutex<Vec<Cutter>>>::default();
    let (counted, open, server) = (count.clone(), connections.clone(), sim.clone());
    sim.on_connect(move |pipe: Pipe| {
        let number = counted.fetch_add(1, Ordering::Relaxed);
        let export = export(number).ok_or(io::ErrorKind::ConnectionRefused)?;
        open.lock().unwrap().push(pipe.cutter());
        let exports = Arc::new(NamedExports::single(export));
        serve(&server, pipe, exports, Behaviour::default());
        Ok(())
    });
    (count, connections)
}

pub(super) fn kill(connections: &Mutex<Vec<Cutter>>) {
    let connections = std::mem::take(&mut *connections.lock().unwrap());
    connections.iter().for_each(Cutter::cut);
}

pub(super) fn memory(size: u64) -> Arc<dyn Export> {
    Arc::new(Memory::new(size))
}

/// The number of failed attempts, and the error of the last one.
fn not_restored(error: Error) -> (u32, Arc<Error>) {
    let Error::Lost(lost) = error else {
        panic!("{error:?}");
    };
    match &*lost {
        Lost::NotRestored { attempts, source } => (*attempts, source.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn delays_double_up_to_the_longest_and_chance_cuts_at_most_a_half() {
    let mut least = 1.0_f64;
    let mut most = 0.0_f64;
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let times = Arc::<Mutex<Vec<Duration>>>::default();
        let (clock, noted) = (sim.clone(), times.clone());
        let (_, connections) = host(&sim, move |number| {
            noted.lock().unwrap().push(clock.now());
            (number == 0).then(|| memory(4096))
        });
        sim.run(async {
            let policy = Reconnect::new()
                .attempts(Some(9))
                .delay(Duration::from_millis(100), Duration::from_secs(1));
            let client = options(&sim, policy);
            let client = client.connect("nbd://localhost").await.unwrap();
            sim.sleep(Duration::from_secs(7)).await;
            kill(&connections);
            let (attempts, _) = not_restored(client.read(0, 1).await.unwrap_err());
            assert_eq!(attempts, 9);
        });
        let times = times.lock().unwrap();
        assert_eq!(times[1], Duration::from_secs(7), "the first is at once");
        let whole = [100, 200, 400, 800, 1000, 1000, 1000, 1000].map(Duration::from_millis);
        assert_eq!(times[1..].len(), whole.len() + 1);
        for (pair, whole) in times[1..].windows(2).zip(whole) {
            let part = (pair[1] - pair[0]).div_duration_f64(whole);
            assert!((0.499..=1.0).contains(&part), "{part} of {whole:?}");
            (least, most) = (least.min(part), most.max(part));
        }
    }
    assert!(least < 0.6 && most > 0.9, "from {least} to {most}");
}

#[test]
fn reconnecting_is_bounded_without_delays_too() {
    let sim = Sim::new(1);
    let (count, server) = (Arc::new(AtomicUsize::new(0)), sim.clone());
    let counted = count.clone();
    // The server ends at every request.
    sim.on_connect(move |pipe: Pipe| {
        let earlier = counted.fetch_add(1, Ordering::Relaxed);
        assert!(earlier < 5000, "a storm");
        let cutter = pipe.cutter();
        let behaviour = Behaviour {
            silent: Some(Arc::new(move |_| {
                cutter.cut();
                true
            })),
            ..Behaviour::default()
        };
        let exports = Arc::new(NamedExports::single(memory(4096)));
        serve(&server, pipe, exports, behaviour);
        Ok(())
    });
    sim.run(async {
        let policy = Reconnect::new()
            .delay(Duration::ZERO, Duration::ZERO)
            .total_time(Some(Duration::from_millis(500)));
        let client = options(&sim, policy);
        let client = client.connect("nbd://localhost").await.unwrap();
        not_restored(client.read(0, 1).await.unwrap_err());
    });
    assert_eq!(sim.now(), Duration::from_millis(500));
    let count = count.load(Ordering::Relaxed);
    assert!((400..=1002).contains(&count), "{count} connections");
}

#[test]
fn connections_that_are_lost_in_turn_back_off_too() {
    // H-038
    for (attempts, connections) in [(1, 2), (1, 3), (3, 2), (5, 4)] {
        let sim = Sim::new(1);
        let (count, server) = (Arc::new(AtomicUsize::new(0)), sim.clone());
        let disk = Machine::start(&sim, false).disk;
        // The server ends at every request.
        sim.on_connect(move |pipe: Pipe| {
            let earlier = count.fetch_add(1, Ordering::Relaxed);
            assert!(earlier < 200, "a storm");
            let cutter = pipe.cutter();
            let behaviour = Behaviour {
                silent: Some(Arc::new(move |_| {
                    cutter.cut();
                    true
                })),
                ..Behaviour::default()
            };
            let exports = Arc::new(NamedExports::single(disk.clone()));
            serve(&server, pipe, exports, behaviour);
            Ok(())
        });
        sim.run(async {
            let policy = Reconnect::new().attempts(Some(attempts));
            let client = options(&sim, policy).connections(connections);
            let client = client.connect("nbd://localhost").await.unwrap();
            not_restored(client.read(0, 1).await.unwrap_err());
        });
    }
}

#[test]
fn a_connection_that_is_given_up_is_tried_again_when_another_is_lost() {
    // C-189
    for seed in 0..10 {
        let sim = Sim::new(seed);
        let room = Arc::new(AtomicUsize::new(9));
        let left = room.clone();
        let (count, connections) = host(&sim, move |_| {
            let take = |left: usize| left.checked_sub(1);
            let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            taken.ok().map(|_| memory(4096))
        });
        sim.run(async {
            let options = options(&sim, policy().attempts(Some(3))).connections(3);
            let client = options.connect("nbd://localhost").await.unwrap();
            let day = Duration::from_secs(86_400);
            sim.sleep(day).await;
            // Room for one connection only.
            room.store(1, Ordering::Relaxed);
            kill(&connections);
            client.write(vec![1; 10], 0).await.unwrap();
            sim.sleep(day).await;
            assert_eq!(client.connections(), 1);
            assert!(matches!(client.state(), ConnectionState::Connected));
            let before = count.load(Ordering::Relaxed);
            client.read(0, 10).await.unwrap();
            sim.sleep(day).await;
            assert_eq!(count.load(Ordering::Relaxed), before, "nothing was tried");
            // There is room for all again.
            room.store(3, Ordering::Relaxed);
            kill(&connections);
            client.read(0, 10).await.unwrap();
            sim.sleep(day).await;
            assert_eq!(client.connections(), 3);
            // And for none.
            kill(&connections);
            let (attempts, _) = not_restored(client.read(0, 10).await.unwrap_err());
            assert_eq!(attempts, 3);
            drop(client);
            sim.sleep(day).await;
        });
        assert_eq!(sim.tasks(), 0, "a task waits for ever");
    }
}

#[test]
fn a_client_lives_as_long_as_one_connection_is_tried() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        // Of two connections that are tried three times each, the last attempt succeeds.
        let (count, connections) = host(&sim, |number| {
            [0, 1, 7].contains(&number).then(|| memory(4096))
        });
        sim.run(async {
            let options = options(&sim, policy().attempts(Some(3))).connections(2);
            let client = options.connect("nbd://localhost").await.unwrap();
            sim.sleep(Duration::from_secs(60)).await;
            kill(&connections);
            client.read(0, 10).await.unwrap();
            assert_eq!(client.connections(), 1);
        });
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }
}

#[test]
fn an_export_that_changed_before_a_reconnect_is_refused_and_reported() {
    // H-039
    let blocks = Memory::new(8192).with_block_sizes(BlockSizes::new(512, 4096, 1 << 20).unwrap());
    let others: [(Arc<dyn Export>, &str); 4] = [
        (memory(4096), "its size"),
        (memory(1 << 20), "its size"),
        (Arc::new(ReadOnly::new(memory(8192))), "its flags"),
        (Arc::new(blocks), "its block sizes"),
    ];
    for (other, what) in others {
        let sim = Sim::new(1);
        let (count, connections) = host(&sim, move |number| {
            Some([memory(8192), other.clone()][number.min(1)].clone())
        });
        let error = sim.run(async {
            let options = options(&sim, policy());
            let client = options.connect("nbd://localhost").await.unwrap();
            kill(&connections);
            let error = client.read(0, 10).await.unwrap_err();
            drop(client);
            sim.sleep(Duration::from_secs(10)).await;
            error
        });
        assert_eq!(
            error.to_string(),
            format!(
                "the connection is over: the connection was lost and not restored (attempts: 1): \
                 the connection is over: on another connection the export differs: {what}"
            )
        );
        assert_eq!(count.load(Ordering::Relaxed), 2, "it is not tried again");
        assert_eq!(sim.tasks(), 0, "the other connection was closed");
    }
}

#[test]
fn an_export_that_grew_before_a_reconnect_is_accepted_if_the_policy_says_so() {
    for accept in [true, false] {
        let sim = Sim::new(1);
        let (_, connections) = host(&sim, |number| Some(memory([8192, 1 << 20][number.min(1)])));
        sim.run(async {
            let policy = policy().accept_growth(accept);
            let client = options(&sim, policy)
                .connect("nbd://localhost")
                .await
                .unwrap();
            kill(&connections);
            let read = client.read(0, 10).await;
            assert_eq!(read.is_ok(), accept);
            // The client uses the size of before.
            assert_eq!(client.size(), 8192);
            assert!(client.read(8192, 10).await.is_err());
        });
    }
    // A smaller export is refused even so.
    let sim = Sim::new(1);
    let (_, connections) = host(&sim, |number| Some(memory([8192, 4096][number.min(1)])));
    sim.run(async {
        let policy = policy().accept_growth(true);
        let options = options(&sim, policy);
        let client = options.connect("nbd://localhost").await.unwrap();
        kill(&connections);
        assert!(client.read(0, 10).await.unwrap_err().is_lost());
    });
}

/// A disk whose server is about to end.
struct Stopping(Arc<Disk>);

impl Export for Stopping {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn flags(&self) -> TransmissionFlags {
        self.0.flags()
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        Err(Failure::new(Errno::Shutdown))
    }

    fn write(&self, _: u64, _: &[u8], _: bool) -> Result<(), Failure> {
        Err(Failure::new(Errno::Shutdown))
    }
}

#[test]
fn unflushed_writes_outlive_a_server_that_shuts_down_again() {
    // C-188
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    let disk = machine.disk.clone();
    let (_, connections) = host(&sim, move |number| {
        Some(match number {
            1 | 2 => Arc::new(Stopping(disk.clone())),
            _ => disk.clone(),
        })
    });
    sim.run(async {
        let client = options(&sim, policy().keep_unflushed(1 << 20));
        let client = client.connect("nbd://localhost").await.unwrap();
        client.write(vec![7; 10], 0).await.unwrap();
        kill(&connections);
        machine.disk.crash();
        assert_eq!(&client.read(0, 10).await.unwrap()[..], [7; 10]);
    });
}

#[test]
fn disconnecting_without_a_connection_reports_how_it_was_lost() {
    let sim = Sim::new(1);
    let (_, connections) = host(&sim, |number| (number == 0).then(|| memory(4096)));
    sim.run(async {
        let client = options(&sim, Reconnect::new());
        let client = client.connect("nbd://localhost").await.unwrap();
        kill(&connections);
        // Far into a delay.
        sim.sleep(Duration::from_secs(20)).await;
        assert!(matches!(
            client.state(),
            ConnectionState::Reconnecting { .. }
        ));
        let at = sim.now();
        let Err(Error::Lost(lost)) = client.disconnect().await else {
            panic!("there was no connection");
        };
        assert!(matches!(*lost, Lost::Closed | Lost::Io(_)), "{lost:?}");
        assert!(client.is_lost());
        sim.sleep(Duration::from_millis(1)).await;
        assert_eq!((sim.now() - at).as_millis(), 1);
        assert_eq!(sim.tasks(), 0, "it is still tried");
    });
}

struct NoWake;

impl Wake for NoWake {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn futures_that_wait_for_a_connection_leave_nothing_when_they_are_dropped() {
    let sim = Sim::new(1);
    let (_, connections) = host(&sim, |number| (number == 0).then(|| memory(4096)));
    sim.run(async {
        let client = options(&sim, Reconnect::new());
        let client = client.connect("nbd://localhost").await.unwrap();
        let poll = |future: &mut dyn FnMut(&mut Context<'_>) -> bool| {
            let waker = Waker::from(Arc::new(NoWake));
            assert!(future(&mut Context::from_waker(&waker)), "it waits");
        };
        let waiting = |client: &Client<Sim>| {
            let state = client.state();
            for _ in 0..100 {
                let mut changed = pin!(client.state_changed(&state));
                poll(&mut |cx| changed.as_mut().poll(cx).is_pending());
                poll(&mut |cx| changed.as_mut().poll(cx).is_pending());
            }
            client.pool.watchers()
        };
        assert_eq!(waiting(&client), 0);
        kill(&connections);
        sim.sleep(Duration::from_secs(20)).await;
        // The connecting task waits, too.
        assert_eq!(waiting(&client), 1);
        for _ in 0..100 {
            let mut read = pin!(client.read(0, 1));
            poll(&mut |cx| read.as_mut().poll(cx).is_pending());
        }
        assert_eq!(client.pool.watchers(), 1);
    });
}

#[test]
fn attempts_without_end_leave_nothing_behind() {
    let sim = Sim::new(1);
    let (count, connections) = host(&sim, |number| {
        [0, 1, 2].contains(&number).then(|| memory(4096))
    });
    sim.run(async {
        let options = options(&sim, policy().total_time(None)).connections(2);
        let client = options.connect("nbd://localhost").await.unwrap();
        kill(&connections);
        client.read(0, 1).await.unwrap();
        sim.sleep(Duration::from_secs(10)).await;
        assert!(count.load(Ordering::Relaxed) > 1000, "it is still tried");
        assert!(client.pool.watchers() <= 2);
    });
}

#[test]
fn a_client_whose_runtime_is_shut_down_is_over() {
    for connections in [1, 3] {
        for connected in [true, false] {
            let sim = Sim::new(1);
            let (_, open) = host(&sim, move |number| {
                (number < connections).then(|| memory(4096))
            });
            sim.run(async {
                let options = options(&sim, Reconnect::new()).connections(connections);
                let client = options.connect("nbd://localhost").await.unwrap();
                if !connected {
                    kill(&open);
                    sim.sleep(Duration::from_secs(1)).await;
                }
                sim.shut_down();
                // No task is left that would wake it.
                let Err(Error::Lost(lost)) = client.read(0, 1).await else {
                    panic!("there is no runtime");
                };
                assert!(matches!(*lost, Lost::Disconnected), "{lost:?}");
                assert!(matches!(client.state(), ConnectionState::Over(_)));
            });
        }
    }
}

#[test]
fn a_disconnect_ends_when_its_runtime_is_shut_down() {
    for begun in [false, true] {
        let sim = Sim::new(1);
        host(&sim, |_| Some(memory(4096)));
        sim.run(async {
            let options = options(&sim, policy()).reconnect(None);
            let client = options.connect("nbd://localhost").await.unwrap();
            if begun {
                client.read(0, 1).await.unwrap();
            }
            let mut disconnect = pin!(client.disconnect());
            let waker = Waker::from(Arc::new(NoWake));
            let polled = disconnect.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            sim.shut_down();
            disconnect.await.unwrap();
        });
    }
}

#[test]
fn a_dropped_client_does_not_wait_for_a_server_that_is_silent_during_replay() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    let disk = machine.disk.clone();
    sim.run(async {
        let policy = policy().total_time(None).keep_unflushed(1 << 20);
        let client = options(&sim, policy);
        let client = client.connect("nbd://localhost").await.unwrap();
        client.write(vec![7; 10], 0).await.unwrap();
        let server = sim.clone();
        sim.on_connect(move |pipe: Pipe| {
            let behaviour = Behaviour {
                silent: Some(Arc::new(|_| true)),
                ..Behaviour::default()
            };
            let exports = Arc::new(NamedExports::single(disk.clone()));
            serve(&server, pipe, exports, behaviour);
            Ok(())
        });
        machine.kill();
        sim.sleep(Duration::from_secs(1)).await;
        drop(client);
        sim.sleep(Duration::from_secs(60)).await;
    });
    assert_eq!(sim.tasks(), 0, "a task waits for ever");
}
