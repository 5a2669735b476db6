//! Connections that are lost and made again.

use super::{
    pipe::{Cut, Cutter, Pipe},
    server::{Behaviour, serve},
    sim::{Sim, join, join_all},
};
use crate::{
    Export, NamedExports, ZeroMode,
    client::{ConnectOptions, ConnectionState, Error, Lost, Reconnect, tasks::Client},
    runtime::Runtime,
};
use nbd_proto::{CommandFlags, Failure, TransmissionFlags};
use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

const SIZE: usize = 256 << 10;

/// A disk that loses unflushed writes in a crash.
pub(super) struct Disk {
    /// The volatile contents, which are read, and the contents of stable storage.
    pub(super) contents: Mutex<(Vec<u8>, Vec<u8>)>,
    pub(super) flushes: AtomicUsize,
    size: AtomicU64,
}

impl Disk {
    fn new() -> Self {
        Self {
            contents: Mutex::new((vec![0; SIZE], vec![0; SIZE])),
            flushes: AtomicUsize::new(0),
            size: AtomicU64::new(SIZE as u64),
        }
    }

    pub(super) fn crash(&self) {
        let (volatile, stable) = &mut *self.contents.lock().unwrap();
        volatile.clone_from(stable);
    }
}

impl Export for Disk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::CAN_MULTI_CONN
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let at = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.contents.lock().unwrap().0[at..at + buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        let at = usize::try_from(offset).unwrap();
        let mut contents = self.contents.lock().unwrap();
        contents.0[at..at + data.len()].copy_from_slice(data);
        if fua {
            contents.1[at..at + data.len()].copy_from_slice(data);
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.write(offset, &vec![0; usize::try_from(len).unwrap()], mode.fua)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let mut contents = self.contents.lock().unwrap();
        contents.1 = contents.0.clone();
        Ok(())
    }
}

/// A server that can be killed.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) disk: Arc<Disk>,
    pub(super) connections: Arc<Mutex<Vec<Cutter>>>,
    pub(super) down: Arc<AtomicBool>,
    attempts: Arc<AtomicUsize>,
}

impl Machine {
    pub(super) fn start(sim: &Sim, shuffle: bool) -> Self {
        let machine = Self {
            disk: Arc::new(Disk::new()),
            connections: Arc::default(),
            down: Arc::default(),
            attempts: Arc::default(),
        };
        let (server, host) = (sim.clone(), machine.clone());
        sim.on_connect(move |pipe: Pipe| {
            host.attempts.fetch_add(1, Ordering::Relaxed);
            if host.down.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            host.connections.lock().unwrap().push(pipe.cutter());
            let exports = Arc::new(NamedExports::single(host.disk.clone()));
            let behaviour = Behaviour {
                shuffle,
                ..Behaviour::default()
            };
            serve(&server, pipe.cut(Cut::Random), exports, behaviour);
            Ok(())
        });
        machine
    }

    /// Ends every connection, and loses everything unflushed.
    pub(super) fn kill(&self) {
        let connections = std::mem::take(&mut *self.connections.lock().unwrap());
        connections.iter().for_each(Cutter::cut);
        self.disk.crash();
    }
}

pub(super) fn options(sim: &Sim, policy: Reconnect) -> ConnectOptions<Sim> {
    ConnectOptions::with_runtime(sim.clone())
        .reconnect(Some(policy))
        .request_timeout(None)
}

pub(super) fn policy() -> Reconnect {
    Reconnect::new().delay(Duration::from_micros(200), Duration::from_millis(5))
}

/// Kills the server now and then until `done` is set.
pub(super) async fn killer(sim: &Sim, machine: &Machine, done: &AtomicBool) -> usize {
    let mut kills = 0;
    while !done.load(Ordering::Relaxed) {
        let pause = [50, 500, 3000][sim.chance().below(3)];
        let pause = Duration::from_micros(sim.chance().below(pause) as u64);
        sim.sleep(pause).await;
        machine.kill();
        kills += 1;
    }
    kills
}

const WRITERS: u64 = 4;
const BLOCKS: u64 = 4;
const BLOCK: usize = 8000;

fn place(writer: u64, block: u64) -> u64 {
    (writer * BLOCKS + block) * 16_384
}

async fn holds(client: &Client<Sim>, writer: u64, block: u64) -> u8 {
    let data = client.read(place(writer, block), BLOCK).await.unwrap();
    assert!(data.iter().all(|byte| *byte == data[0]), "a write is torn");
    data[0]
}

#[test]
fn nothing_that_was_answered_is_lost_when_unflushed_writes_are_kept() {
    let mut kills = 0;
    for seed in 0..60 {
        let sim = Sim::new(seed);
        let machine = Machine::start(&sim, seed % 2 == 0);
        kills += sim.run(async {
            // So little that the client flushes now and then.
            let limit = [25_000, 1 << 20][usize::try_from(seed % 2).unwrap()];
            let client = options(&sim, policy().keep_unflushed(limit))
                .connections(1 + usize::try_from(seed % 3).unwrap())
                .connect("nbd://localhost")
                .await
                .unwrap();
            let (client, chance) = (&client, sim.chance());
            let done = AtomicBool::new(false);
            let load = async {
                join_all((0..WRITERS).map(|writer| async move {
                    let mut model = [0; 4];
                    for round in 1..30_u8 {
                        let block = chance.below(4);
                        let at = place(writer, block as u64);
                        match chance.below(8) {
                            0 => client.flush().await.unwrap(),
                            1 => {
                                let fua = CommandFlags::FUA;
                                client
                                    .write_with(vec![round; BLOCK], at, fua)
                                    .await
                                    .unwrap();
                                model[block] = round;
                            }
                            2 => {
                                let len = BLOCK as u64;
                                let flags = CommandFlags::NONE;
                                client.write_zeroes(at, len, flags).await.unwrap();
                                model[block] = 0;
                            }
                            _ => {
                                client.write(vec![round; BLOCK], at).await.unwrap();
                                model[block] = round;
                            }
                        }
                        let block = chance.below(4);
                        let found = holds(client, writer, block as u64).await;
                        assert_eq!(found, model[block], "writer {writer}, block {block}");
                    }
                }))
                .await;
                done.store(true, Ordering::Relaxed);
            };
            let ((), kills) = join(load, killer(&sim, &machine, &done)).await;
            client.flush().await.unwrap();
            client.disconnect().await.unwrap();
            kills
        });
    }
    assert!(kills > 500, "only {kills} kills");
}

#[test]
fn flushed_writes_stay_and_the_loss_of_others_is_reported() {
    // C-192, S-220
    let (mut kills, mut reported) = (0, 0);
    for seed in 0..60 {
        let sim = Sim::new(seed);
        let machine = Machine::start(&sim, seed % 2 == 0);
        sim.run(async {
            let client = options(&sim, policy())
                .connections(1 + usize::try_from(seed % 3).unwrap())
                .connect("nbd://localhost")
                .await
                .unwrap();
            let (client, chance) = (&client, sim.chance());
            let done = AtomicBool::new(false);
            let load = async {
                let reported = join_all((0..WRITERS).map(|writer| async move {
                    // Each has epochs of its own.
                    let mut client = client.clone();
                    let mut reported = 0;
                    // The possible contents of each block; the last one was written last.
                    let mut model = [(); 4].map(|()| vec![0]);
                    for round in 1..40_u8 {
                        let block = chance.below(4);
                        let at = place(writer, block as u64);
                        match chance.below(4) {
                            0 => match client.flush().await {
                                Ok(()) => {
                                    for (block, may) in model.iter_mut().enumerate() {
                                        let last = *may.last().unwrap();
                                        *may = vec![last];
                                        let found = holds(&client, writer, block as u64).await;
                                        assert_eq!(found, last, "flushed, and gone");
                                    }
                                }
                                Err(Error::Unflushed) => {
                                    reported += 1;
                                    client = client.new_epoch();
                                    for (block, may) in model.iter_mut().enumerate() {
                                        let found = holds(&client, writer, block as u64).await;
                                        assert!(may.contains(&found), "{found} of {may:?}");
                                        // The last write need not have been flushed before it was
                                        // read.
                                        let last = *may.last().unwrap();
                                        may.retain(|value| *value != last);
                                        may.push(last);
                                        let data = vec![round; BLOCK];
                                        let at = place(writer, block as u64);
                                        let fua = CommandFlags::FUA;
                                        client.write_with(data, at, fua).await.unwrap();
                                        *may = vec![round];
                                    }
                                }
                                Err(other) => panic!("{other}"),
                            },
                            1 => {
                                let fua = CommandFlags::FUA;
                                client
                                    .write_with(vec![round; BLOCK], at, fua)
                                    .await
                                    .unwrap();
                                model[block] = vec![round];
                            }
                            _ => {
                                client.write(vec![round; BLOCK], at).await.unwrap();
                                model[block].push(round);
                            }
                        }
                        let found = holds(&client, writer, block as u64).await;
                        assert!(model[block].contains(&found));
                    }
                    reported
                }))
                .await;
                done.store(true, Ordering::Relaxed);
                reported.into_iter().sum::<usize>()
            };
            let (losses, killed) = join(load, killer(&sim, &machine, &done)).await;
            kills += killed;
            reported += losses;
        });
    }
    assert!(
        kills > 500 && reported > 100,
        "{kills} kills, {reported} reported"
    );
}

#[test]
fn after_a_loss_flushes_fail_until_a_new_epoch() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let first = options(&sim, policy());
        let first = first.connect("nbd://localhost").await.unwrap();
        let second = first.clone();
        first.write(vec![1; 10], 0).await.unwrap();
        machine.kill();
        second.read(0, 10).await.unwrap();
        let next = first.new_epoch();
        for client in [&first, &second, &first.clone(), &first] {
            assert!(matches!(client.flush().await, Err(Error::Unflushed)));
            next.flush().await.unwrap();
        }
        let first = next;
        // No loss counts for data that was not written, or was flushed, or was forced (FUA).
        first.write(vec![1; 10], 0).await.unwrap();
        first.flush().await.unwrap();
        let fua = CommandFlags::FUA;
        first.write_with(vec![1; 10], 0, fua).await.unwrap();
        machine.kill();
        first.read(0, 10).await.unwrap();
        first.flush().await.unwrap();
    });
}

#[test]
fn a_client_that_cannot_reconnect_says_why() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let options = options(&sim, policy().attempts(Some(5)));
        let client = options.connect("nbd://localhost").await.unwrap();
        assert!(matches!(client.state(), ConnectionState::Connected));
        machine.down.store(true, Ordering::Relaxed);
        let states = async {
            let mut state = client.state();
            let mut seen = 0;
            while !matches!(state, ConnectionState::Over(_)) {
                state = client.state_changed(&state).await;
                seen += 1;
            }
            seen
        };
        machine.kill();
        let (read, seen) = join(client.read(0, 10), states).await;
        let Err(Error::Lost(lost)) = read else {
            panic!("{read:?}");
        };
        let Lost::NotRestored { attempts, source } = &*lost else {
            panic!("{lost:?}");
        };
        assert_eq!(*attempts, 5);
        assert!(matches!(**source, Error::Connect { .. }));
        assert!(seen >= 3, "{seen} changes of state");
        assert_eq!(machine.attempts.load(Ordering::Relaxed), 6);
        assert!(client.is_lost());
    });
}

#[test]
fn reconnecting_stops_at_its_deadline_or_with_the_last_client() {
    for drops in [false, true] {
        let sim = Sim::new(1);
        let machine = Machine::start(&sim, false);
        sim.run(async {
            let policy = policy().total_time(Some(Duration::from_secs(60)));
            let client = options(&sim, policy);
            let client = client.connect("nbd://localhost").await.unwrap();
            machine.down.store(true, Ordering::Relaxed);
            machine.kill();
            sim.sleep(Duration::from_secs(1)).await;
            if drops {
                drop(client);
                sim.sleep(Duration::from_secs(1)).await;
            } else {
                assert!(client.read(0, 1).await.unwrap_err().is_lost());
                assert_eq!(sim.now().as_secs(), 60);
            }
            assert_eq!(sim.tasks(), 0);
        });
    }
}

#[test]
fn a_client_does_not_reconnect_to_another_export() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let client = options(&sim, policy());
        let client = client.connect("nbd://localhost").await.unwrap();
        machine.disk.size.store(4096, Ordering::Relaxed);
        machine.kill();
        let Err(Error::Lost(lost)) = client.read(0, 10).await else {
            panic!("the export has changed");
        };
        assert!(
            matches!(*lost, Lost::NotRestored { attempts: 1, .. }),
            "{lost:?}"
        );
    });
}

#[test]
fn without_a_policy_a_lost_connection_stays_lost() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let options = options(&sim, policy()).reconnect(None);
        let client = options.connect("nbd://localhost").await.unwrap();
        client.read(0, 10).await.unwrap();
        machine.kill();
        let first = client.read(0, 10).await.unwrap_err();
        let second = client.flush().await.unwrap_err();
        let (Error::Lost(first), Error::Lost(second)) = (first, second) else {
            panic!("the connection is over");
        };
        assert!(Arc::ptr_eq(&first, &second));
        assert!(matches!(*first, Lost::Closed | Lost::Io(_)), "{first}");
        assert_eq!(machine.attempts.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn all_connections_are_restored_when_one_is_lost() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, true);
    sim.run(async {
        let options = options(&sim, policy()).connections(3);
        let client = options.connect("nbd://localhost").await.unwrap();
        let one = machine.connections.lock().unwrap().remove(1);
        let client = &client;
        let load = join_all((0..30).map(|n| async move {
            client.write(vec![1; 100], n * 100).await.unwrap();
            client.read(n * 100, 100).await.unwrap();
        }));
        let cut = async {
            sim.sleep(Duration::from_micros(60)).await;
            one.cut();
            sim.sleep(Duration::from_secs(1)).await;
        };
        join(load, cut).await;
        assert_eq!(client.connections(), 3);
        assert_eq!(machine.attempts.load(Ordering::Relaxed), 6);
        client.disconnect().await.unwrap();
    });
}

#[test]
fn an_answer_of_a_server_that_has_crashed_is_not_covered_by_a_flush_of_the_next() {
    // C-192
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let options = options(&sim, policy()).connections(2);
        let client = options.connect("nbd://localhost").await.unwrap();
        let mut write = pin!(client.write(vec![7; 10], 0));
        let poll_once = |cx: &mut Context<'_>| Poll::Ready(write.as_mut().poll(cx).is_pending());
        assert!(poll_fn(poll_once).await);
        // The reply comes, but is not read before the other connection is restored.
        sim.sleep(Duration::from_millis(1)).await;
        let connections = std::mem::take(&mut *machine.connections.lock().unwrap());
        connections.iter().for_each(Cutter::end);
        machine.disk.crash();
        sim.sleep(Duration::from_millis(100)).await;
        write.await.unwrap();
        client.flush().await.unwrap();
        machine.kill();
        assert_eq!(&client.read(0, 10).await.unwrap()[..], [7; 10]);
    });
}
