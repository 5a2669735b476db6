//! When a client tries to come back, and when it stops.

use super::{Machine, SIZE, negotiation, options, policy, read};
use crate::support::{
    bytes,
    host::{Host, disk},
    script::Negotiation,
    spawn, within,
};
use nbd_blocking::{ConnectionState, Error, Lost, Reconnect};
use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

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
fn an_export_that_changed_before_a_reconnect_is_refused_and_reported() {
    // H-039
    within(10, || {
        let host = Host::start(|number, peer| {
            let mut negotiation = negotiation();
            if number > 0 {
                negotiation.size = 4096;
            }
            peer.try_negotiate(&negotiation)?;
            peer.try_request()?;
            Ok(())
        });
        let client = options(policy()).connect(&host.uri()).expect("entered");
        let error = client.read_exact_at(&mut [0; 512], 0).expect_err("another");
        let (attempts, source) = not_restored(error);
        let Error::Lost(lost) = &*source else {
            panic!("{source:?}");
        };
        let Lost::Changed { what } = **lost else {
            panic!("{lost:?}");
        };
        assert_eq!((attempts, what), (1, "its size"));
        assert!(matches!(client.state(), ConnectionState::Over(_)));
        assert!(client.flush().expect_err("it is over").is_lost());
        assert_eq!(host.count(), 2, "it is not tried again");
    });
}

#[test]
fn an_export_that_grew_before_a_reconnect_is_accepted_if_the_policy_says_so() {
    // H-039
    within(10, || {
        let before = 8192;
        for (after, accept, is_accepted) in [
            (1 << 20, true, true),
            (1 << 20, false, false),
            // A smaller export is refused even so.
            (4096, true, false),
        ] {
            let disk = disk(SIZE);
            let host = Host::start(move |number, peer| {
                let size = if number == 0 { before } else { after };
                peer.try_negotiate(&Negotiation {
                    size,
                    ..negotiation()
                })?;
                if number == 0 {
                    peer.try_request()?;
                    return Ok(());
                }
                peer.serve(number, &disk)
            });
            let options = options(policy().accept_growth(accept));
            let client = options.connect(&host.uri()).expect("entered");
            let read = client.read_exact_at(&mut [0; 512], 0);
            assert_eq!(read.is_ok(), is_accepted, "{after}: {read:?}");
            assert_eq!(host.count(), 2);
            if is_accepted {
                // The client uses the size of before.
                assert_eq!(client.size(), before);
                let beyond = client.read_exact_at(&mut [0; 512], before);
                assert!(!beyond.expect_err("it is not sent").is_lost());
                client.disconnect().expect("the session ends well");
            }
        }
    });
}

#[test]
fn a_client_that_cannot_reconnect_fails_every_waiting_call_with_the_reason() {
    within(10, || {
        let machine = Machine::start();
        let client = machine.connect(&options(policy().attempts(Some(5))));
        machine.down.store(true, Ordering::SeqCst);
        machine.kill();
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let client = client.clone();
                spawn(move || client.read_exact_at(&mut [0; 512], 0))
            })
            .collect();
        for reader in readers {
            let error = reader.join().expect("no panics").expect_err("it is down");
            let (attempts, source) = not_restored(error);
            assert_eq!(attempts, 5);
            assert!(matches!(*source, Error::Negotiation { .. }), "{source:?}");
        }
        assert_eq!(machine.host.count(), 6);
        assert!(client.is_lost());
        machine.down.store(false, Ordering::SeqCst);
        assert!(client.flush().expect_err("it is over").is_lost());
        assert!(client.disconnect().expect_err("it is over").is_lost());
    });
}

#[test]
fn a_client_stops_trying_when_its_time_is_over() {
    within(10, || {
        let machine = Machine::start();
        let limit = Duration::from_millis(200);
        let client = machine.connect(&options(policy().total_time(Some(limit))));
        machine.down.store(true, Ordering::SeqCst);
        machine.kill();
        let start = Instant::now();
        let error = client.flush().expect_err("it is down");
        let (attempts, _) = not_restored(error);
        assert!(attempts > 5, "{attempts}");
        assert!(start.elapsed() >= limit - Duration::from_millis(20));
    });
}

#[test]
fn reconnecting_to_a_server_that_ends_at_every_request_backs_off() {
    // H-038
    within(15, || {
        for (shuts_down, connections) in [(false, 1), (true, 1), (false, 3)] {
            let host = Host::start(move |number, peer| {
                assert!(number < 50, "a storm");
                peer.try_negotiate(&negotiation())?;
                let (request, _) = peer.try_request()?;
                if shuts_down {
                    // ESHUTDOWN
                    peer.try_says(bytes::sr(108, request.cookie, []))?;
                    peer.rest();
                }
                Ok(())
            });
            let policy = Reconnect::new()
                .attempts(Some(4))
                .delay(Duration::from_millis(100), Duration::from_secs(1));
            let options = options(policy).connections(connections);
            let client = options.connect(&host.uri()).expect("entered");
            let start = Instant::now();
            let error = client
                .read_exact_at(&mut [0; 512], 0)
                .expect_err("every attempt fails");
            let (attempts, _) = not_restored(error);
            assert_eq!(attempts, 4);
            // Exponential backoff with equal jitter: at least a half of 100, 200 and 400 ms.
            assert!(start.elapsed() >= Duration::from_millis(350));
            assert!(host.count() <= 5 * connections, "{}", host.count());
        }
    });
}

#[test]
fn requests_are_late_while_there_is_no_connection_too() {
    within(10, || {
        let machine = Machine::start();
        let timeout = Duration::from_millis(300);
        let options = options(policy()).request_timeout(Some(timeout));
        let client = machine.connect(&options);
        machine.down.store(true, Ordering::SeqCst);
        machine.kill();
        let start = Instant::now();
        let error = client.read_exact_at(&mut [0; 512], 0).expect_err("late");
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        assert!(start.elapsed() >= timeout);
        assert!(matches!(
            client.state(),
            ConnectionState::Reconnecting { .. }
        ));
        machine.down.store(false, Ordering::SeqCst);
        assert_eq!(read(&client, 0, 10), [0; 10]);
    });
}

#[test]
fn disconnecting_without_a_connection_ends_waiting_calls() {
    within(10, || {
        let machine = Machine::start();
        let delay = Duration::from_secs(60);
        let client = machine.connect(&options(Reconnect::new().delay(delay, delay)));
        machine.down.store(true, Ordering::SeqCst);
        machine.kill();
        let waits = {
            let client = client.clone();
            spawn(move || client.read_exact_at(&mut [0; 512], 0))
        };
        while !matches!(client.state(), ConnectionState::Reconnecting { attempt, .. } if attempt > 0)
        {
            thread::sleep(Duration::from_millis(1));
        }
        let Err(Error::Lost(lost)) = client.disconnect() else {
            panic!("there was no connection");
        };
        assert!(matches!(*lost, Lost::Closed | Lost::Io(_)), "{lost:?}");
        let error = waits.join().expect("no panics").expect_err("it is over");
        let Error::Lost(lost) = error else {
            panic!("{error:?}");
        };
        assert!(matches!(*lost, Lost::Disconnected), "{lost:?}");
        assert!(client.is_lost());
    });
}
