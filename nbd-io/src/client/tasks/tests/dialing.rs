//! Connections that a function of the program's makes.

use super::{
    policy::host,
    recovery::{options, policy},
    sim::Sim,
};
use crate::{
    Memory,
    client::{ConnectOptions, DialOptions, Error},
    runtime::{Network, Runtime},
};
use nbd_proto::Uri;
use std::{
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

/// A function that reaches the server of the simulation.
fn dial(sim: &Sim) -> impl Fn() -> Dialing + Send + Sync + 'static + use<> {
    let (sim, uri) = (sim.clone(), "nbd://localhost".parse::<Uri>().unwrap());
    move || {
        let (sim, uri) = (sim.clone(), uri.clone());
        Box::pin(async move { sim.connect(uri.address(), &DialOptions::default()).await })
    }
}

type Dialing = std::pin::Pin<Box<dyn Future<Output = io::Result<super::pipe::Pipe>> + Send>>;

#[test]
fn lost_connections_are_made_again_by_a_function_of_the_programs() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let (count, open) = host(&sim, |_| Some(Arc::new(Memory::new(4096))));
        sim.run(async {
            let options = options(&sim, policy()).connections(2);
            let client = options.connect_with(dial(&sim), None).await.unwrap();
            client.write(vec![7; 512], 512).await.unwrap();
            client.flush().await.unwrap();
            assert_eq!(count.load(Ordering::Relaxed), 2);
            for cutter in open.lock().unwrap().drain(..) {
                cutter.cut();
            }
            client.write(vec![8; 512], 0).await.unwrap();
            client.flush().await.unwrap();
            sim.sleep(SECOND).await;
            assert_eq!(client.connections(), 2);
            assert_eq!(count.load(Ordering::Relaxed), 4);
        });
    }
}

#[test]
fn a_function_that_makes_no_connection_in_time_is_given_up() {
    let sim = Sim::new(1);
    let dropped = Arc::new(AtomicUsize::new(0));
    sim.run(async {
        let options = ConnectOptions::with_runtime(sim.clone()).connect_timeout(Some(SECOND));
        let marker = dropped.clone();
        let silent = move || {
            let marker = Dropped(marker.clone());
            async move {
                let _marker = marker;
                pending::<io::Result<super::pipe::Pipe>>().await
            }
        };
        let error = options.connect_with(silent, Some("tunnel")).await;
        let Err(Error::Connect { to, source }) = error else {
            panic!("{error:?}");
        };
        assert_eq!((&*to, source.kind()), ("tunnel", io::ErrorKind::TimedOut));
        assert_eq!(sim.now(), SECOND);
    });
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
}

#[test]
fn a_function_that_fails_says_why() {
    let sim = Sim::new(1);
    sim.run(async {
        let options = ConnectOptions::with_runtime(sim.clone());
        let broken = || async { Err::<super::pipe::Pipe, _>(io::Error::other("no tunnel")) };
        let error = options.connect_with(broken, None).await.unwrap_err();
        assert!(error.to_string().contains("no tunnel"), "{error}");
    });
}

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
