//! Requests and bytes per second.

use super::{
    Server,
    support::{ENTERED, GO, Running, expect, reply, small, soon},
};
use nbd_blocking::{Client, ConnectOptions};
use nbd_io::{Memory, server::Rate};
use std::{
    io::{Read, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

fn memory() -> Server {
    Server::single(Arc::new(Memory::new(1 << 20)))
}

/// Reads so often on each connection, many at a time. Returns how long that takes.
fn read(clients: &[Client], times: u64, len: usize) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(move || {
                let mut queue = client.queue();
                for _ in 0..times {
                    queue.read(vec![0; len], 0).unwrap();
                }
                while let Some(completion) = queue.complete().unwrap() {
                    completion.into_buffer().unwrap();
                }
            });
        }
    });
    start.elapsed()
}

/// Least time for work that a rate limits to `seconds`: a limiter that was idle has saved up a
/// tenth of a second, and clocks differ a little.
fn at_least(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds - 0.15)
}

#[test]
fn all_connections_together_keep_to_the_rate_of_the_server() {
    soon(|| {
        for (rate, times, len) in [
            (Rate::new().requests(200), 50, 512),
            (Rate::new().bytes(4 << 20), 8, 256 << 10),
        ] {
            let running = Running::new(memory().rate(rate));
            let options = ConnectOptions::new();
            let tcp = || options.connect_over(running.raw_tcp(), None).unwrap();
            let clients = [running.connect(&options), running.connect(&options), tcp()];
            let took = read(&clients[..2], times, len);
            assert!(
                took >= at_least(0.5) || len > 512 && took >= at_least(1.0),
                "{took:?}"
            );
            // The last requests are to be paid for, too.
            let took = read(&clients, times, len);
            assert!(took >= at_least(0.75), "{took:?}");
            running.stop();
        }
    });
}

#[test]
fn connections_of_a_host_keep_to_its_rate_together_and_others_to_their_own() {
    soon(|| {
        let running = Running::new(memory().client_rate(Rate::new().requests(200)));
        let options = ConnectOptions::new();
        let tcp = || options.connect_over(running.raw_tcp(), None).unwrap();
        let took = read(&[tcp(), tcp()], 100, 512);
        assert!(took >= at_least(1.0), "{took:?}");
        // A client does not get rid of its debt by another connection.
        let took = read(&[tcp()], 100, 512);
        assert!(took >= at_least(0.5), "{took:?}");
        let unix = [running.connect(&options), running.connect(&options)];
        let took = read(&unix, 100, 512);
        assert!(took >= at_least(0.5), "{took:?}");
        running.stop();
    });
}

#[test]
fn a_client_that_has_to_wait_is_not_idle_and_learns_that_the_server_stops() {
    soon(|| {
        let rate = Rate::new().bytes(16);
        let idle = Duration::from_millis(50);
        let running = Running::new(memory().client_rate(rate).idle_timeout(Some(idle)));
        let enter = || {
            let mut raw = running.raw();
            raw.write_all(GO).unwrap();
            raw.read_exact(&mut [0; ENTERED]).unwrap();
            raw
        };
        let mut waiting = enter();
        waiting.write_all(&small(0, 1)).unwrap();
        expect(&mut waiting, &reply(0, 1, &[0; 512]));
        // That is half a minute's worth.
        waiting.write_all(&small(0, 2)).unwrap();
        let _idle = enter();
        assert_eq!(
            running.ending(1),
            "nothing was sent or received for too long"
        );
        running.stopper.stop();
        expect(&mut waiting, &reply(108, 2, b""));
        running.stop();
    });
}
