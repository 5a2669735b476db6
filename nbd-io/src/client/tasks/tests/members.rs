//! The choice of connections while some of them are silent or about to end.

use super::{
    pipe::{Cutter, Pipe},
    recovery::{options, policy},
    server::{Behaviour, serve},
    sim::{Sim, join},
};
use crate::{
    Export, Memory, NamedExports,
    client::{ConnectOptions, ConnectionState, Error, Lost, Reconnect, tasks::Client},
    runtime::Runtime,
};
use nbd_proto::{Errno, Failure};
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

/// An export whose server is about to shut down, whether a request is pending or not.
struct Ending(bool);

impl Export for Ending {
    fn size(&self) -> u64 {
        4096
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Failure> {
        if self.0 {
            return Err(Failure::new(Errno::Shutdown));
        }
        buf.fill(0);
        Ok(())
    }
}

/// A server that holds its first request and shuts down, and healthy ones after it.
fn shutting_down(sim: &Sim) {
    let (count, server) = (AtomicUsize::new(0), sim.clone());
    sim.on_connect(move |pipe: Pipe| {
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        let silent = move |request: usize| first && request == 0;
        let behaviour = Behaviour {
            silent: Some(Arc::new(silent)),
            ..Behaviour::default()
        };
        let exports = Arc::new(NamedExports::single(Arc::new(Ending(first))));
        serve(&server, pipe, exports, behaviour);
        Ok(())
    });
}

async fn connect(options: ConnectOptions<Sim>) -> Client<Sim> {
    options.connect("nbd://localhost").await.unwrap()
}

#[test]
fn a_server_that_shuts_down_is_left_at_once_even_with_requests_in_flight() {
    // C-188
    for seed in 0..20 {
        let sim = Sim::new(seed);
        shutting_down(&sim);
        sim.run(async {
            let client = connect(options(&sim, policy())).await;
            let held = client.read(0, 512);
            let other = async {
                sim.sleep(Duration::from_millis(1)).await;
                client.read(512, 512).await.unwrap();
                assert!(sim.now() < SECOND, "{:?}", sim.now());
                assert!(matches!(client.state(), ConnectionState::Connected));
            };
            let (held, ()) = join(held, other).await;
            held.unwrap();
        });
    }
}

#[test]
fn without_a_policy_it_is_known_at_once_that_the_server_shuts_down() {
    // C-188
    let sim = Sim::new(1);
    shutting_down(&sim);
    sim.run(async {
        let client = connect(options(&sim, policy()).reconnect(None)).await;
        let held = client.read(0, 512);
        let other = async {
            sim.sleep(Duration::from_millis(1)).await;
            let known = client.state();
            let error = client.read(512, 512).await.unwrap_err();
            assert_eq!(error.errno(), Some(Errno::Shutdown));
            let state = client.state_changed(&known).await;
            let ConnectionState::Over(lost) = state else {
                panic!("{state:?}");
            };
            assert!(matches!(*lost, Lost::ShutsDown), "{lost:?}");
            assert!(sim.now() < SECOND, "{:?}", sim.now());
            assert!(client.is_lost());
        };
        let (held, ()) = join(held, other).await;
        assert!(held.unwrap_err().is_lost());
    });
}

#[test]
fn the_last_attempt_is_made_when_the_time_is_over_and_not_a_pause_earlier() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let times = Arc::<Mutex<Vec<Duration>>>::default();
        let open = Arc::<Mutex<Vec<Cutter>>>::default();
        let (server, noted, pipes) = (sim.clone(), times.clone(), open.clone());
        sim.on_connect(move |pipe: Pipe| {
            let mut noted = noted.lock().unwrap();
            noted.push(server.now());
            if noted.len() > 1 {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            pipes.lock().unwrap().push(pipe.cutter());
            let exports = Arc::new(NamedExports::single(Arc::new(Memory::new(4096))));
            serve(&server, pipe, exports, Behaviour::default());
            Ok(())
        });
        sim.run(async {
            let policy = Reconnect::new().total_time(Some(12 * SECOND));
            let client = connect(options(&sim, policy)).await;
            sim.sleep(20 * SECOND).await;
            open.lock().unwrap()[0].cut();
            let error = client.read(0, 512).await.unwrap_err();
            let Error::Lost(lost) = error else {
                panic!("{error:?}");
            };
            assert!(matches!(*lost, Lost::NotRestored { .. }), "{lost:?}");
        });
        assert_eq!(times.lock().unwrap().last(), Some(&(32 * SECOND)));
        assert_eq!(sim.now(), 32 * SECOND);
    }
}

#[test]
fn connections_are_restored_on_request() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let (count, server) = (Arc::new(AtomicUsize::new(0)), sim.clone());
        let counted = count.clone();
        // The first two take requests and answer none, the next two refuse.
        sim.on_connect(move |pipe: Pipe| {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            if (2..4).contains(&number) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let behaviour = Behaviour {
                silent: Some(Arc::new(move |_| number < 2)),
                ..Behaviour::default()
            };
            let exports = Arc::new(NamedExports::single(Arc::new(Memory::new(4096))));
            serve(&server, pipe, exports, behaviour);
            Ok(())
        });
        sim.run(async {
            let hour = 3600 * SECOND;
            let policy = Reconnect::new().delay(hour, hour).total_time(None);
            let client = connect(options(&sim, policy).connections(2)).await;
            let asks = async {
                sim.sleep(SECOND).await;
                client.reconnect_now().unwrap();
                sim.sleep(SECOND).await;
                assert_eq!(count.load(Ordering::Relaxed), 4);
                assert_eq!(client.connections(), 0);
                client.reconnect_now().unwrap();
                sim.sleep(SECOND).await;
                assert_eq!(client.connections(), 2);
            };
            let (read, ()) = join(client.read(0, 512), asks).await;
            read.unwrap();
            assert!(sim.now() < 4 * SECOND);
            client.disconnect().await.unwrap();
            assert!(client.reconnect_now().unwrap_err().is_lost());
        });
    }
    let sim = Sim::new(1);
    shutting_down(&sim);
    sim.run(async {
        let client = connect(options(&sim, policy()).reconnect(None)).await;
        let error = client.reconnect_now().unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    });
}

#[test]
fn a_server_that_is_silent_without_closing_is_given_up() {
    for lose in [true, false] {
        let sim = Sim::new(1);
        let (count, server) = (AtomicUsize::new(0), sim.clone());
        sim.on_connect(move |pipe: Pipe| {
            let first = count.fetch_add(1, Ordering::Relaxed) == 0;
            let behaviour = Behaviour {
                silent: Some(Arc::new(move |_| first)),
                ..Behaviour::default()
            };
            let exports = Arc::new(NamedExports::single(Arc::new(Memory::new(4096))));
            serve(&server, pipe, exports, behaviour);
            Ok(())
        });
        sim.run(async {
            let mut options = options(&sim, policy()).request_timeout(Some(10 * SECOND));
            if !lose {
                options = options.lose_when_silent(false);
            }
            let client = connect(options).await;
            let later = async {
                sim.sleep(SECOND).await;
                client.read(512, 512).await
            };
            let (first, later) = join(client.read(0, 512), later).await;
            let late = |error| matches!(error, Some(Error::Timeout { .. }));
            assert!(late(first.err()));
            // A request with time left is made again.
            assert_eq!(late(later.err()), !lose);
            assert_eq!(client.read(0, 512).await.is_ok(), lose);
        });
    }
}
